#!lua
-- A vote: check, deduplicate, append, and make it current, all or nothing.
-- KEYS idempotency, turn, current, votes, turns, rated, rated_by
-- ARGV turn_id, rater, digest, sealed event, field in current, retracted (0 or 1), lifetime of the key (ms),
--      fields of the answers (r0..r7)...
-- Returns {'OK', event id, version that answered ('' if it was not written down)}, {'OK', event id} for a repeated call,
-- or {why not}.
local kept = redis.call('GET', KEYS[1])
if kept then
  local digest, id = string.match(kept, '^(%S+) (%S+)$')
  if digest ~= ARGV[3] then
    return {'CONFLICT'}
  end
  -- A write, so that waiting for the disk also covers the first call's vote, whose answer may have been lost.
  redis.call('PEXPIRE', KEYS[1], ARGV[7])
  return {'OK', id}
end
local owner = redis.call('HGET', KEYS[2], 'owner')
if not owner then
  return {'NO_TURN'}
end
if owner ~= ARGV[2] then
  return {'NOT_ALLOWED'}
end
for i = 8, #ARGV do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then
    return {'NO_RESPONSE'}
  end
end
local retracted = ARGV[6] == '1'
if retracted and redis.call('HEXISTS', KEYS[3], ARGV[5]) == 0 then
  return {'NO_VOTE'}
end
-- Nothing is written above this line and nothing is refused below it.
local time = redis.call('ZSCORE', KEYS[5], ARGV[1]) or redis.call('ZSCORE', KEYS[6], ARGV[1]) or '0'
local id = redis.call('XADD', KEYS[4], '*', 'v', ARGV[4])
if retracted then
  redis.call('HDEL', KEYS[3], ARGV[5])
else
  redis.call('HSET', KEYS[3], ARGV[5], id .. ' ' .. ARGV[4])
end
redis.call('HSET', KEYS[2], 'last', id)
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('ZREM', KEYS[5], ARGV[1])
  redis.call('ZADD', KEYS[6], time, ARGV[1])
  redis.call('ZADD', KEYS[7], time, ARGV[1])
else
  redis.call('ZREM', KEYS[6], ARGV[1])
  redis.call('ZREM', KEYS[7], ARGV[1])
  redis.call('ZADD', KEYS[5], time, ARGV[1])
end
redis.call('SET', KEYS[1], ARGV[3] .. ' ' .. id, 'PX', ARGV[7])
return {'OK', id, redis.call('HGET', KEYS[2], 'v' .. string.sub(ARGV[8] or 'r0', 2)) or ''}
