#!lua
-- KEYS lease, fence; ARGV holder, lifetime (ms). Returns the fencing token, or 0 if somebody else leads.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
  return 0
end
if not held then
  redis.call('INCR', KEYS[2])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return tonumber(redis.call('GET', KEYS[2]))
