#!lua
-- One answer of a turn. Running it twice is the same as once.
-- KEYS turn, turns, rated, owned_by, erased, answers:<version>...
-- ARGV turn_id, time (ms), owner, sealed turn, index of the answer, sealed answer, kept per version, lifetime (ms),
--      version that answered
-- Returns 0, and writes nothing, if the owner was erased since it asked.
local erased = redis.call('HGET', KEYS[5], ARGV[3])
if erased and tonumber(ARGV[2]) <= tonumber(erased) then
  return 0
end
redis.call('HSET', KEYS[1], 't', ARGV[4], 'owner', ARGV[3], 'r' .. ARGV[5], ARGV[6], 'v' .. ARGV[5], ARGV[9])
if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
end
redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1])
for i = 6, #KEYS do
  redis.call('ZADD', KEYS[i], ARGV[2], ARGV[1])
  redis.call('ZREMRANGEBYRANK', KEYS[i], 0, -1 - tonumber(ARGV[7]))
  redis.call('PEXPIRE', KEYS[i], ARGV[8])
end
return 1
