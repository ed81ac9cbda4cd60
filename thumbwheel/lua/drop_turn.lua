#!lua
-- Forgets a turn, unless it got a vote since it was looked at.
-- KEYS index (turns or rated), turn, current, rated_by, owned_by
-- ARGV turn_id, id of its latest vote when it was looked at ('' if none)
if (redis.call('HGET', KEYS[2], 'last') or '') ~= ARGV[2] then
  return 0
end
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
return 1
