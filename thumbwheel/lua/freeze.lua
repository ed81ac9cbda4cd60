#!lua
-- The manifest of the cycle under way; stores this one if there is none.
-- KEYS fence, manifest, done; ARGV token, cycle_id, sealed manifest ('' only looks)
-- Returns {'FENCED'}, {'OK', sealed manifest}, {'DONE'} or {'NONE'}.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return {'FENCED'}
end
local kept = redis.call('HGET', KEYS[2], 'data')
if kept then
  return {'OK', kept}
end
if redis.call('SISMEMBER', KEYS[3], ARGV[2]) == 1 then
  return {'DONE'}
end
if ARGV[3] == '' then
  return {'NONE'}
end
redis.call('HSET', KEYS[2], 'cycle_id', ARGV[2], 'data', ARGV[3])
return {'OK', ARGV[3]}
