#!lua
-- One answer of a turn. Running it twice is the same as once.
-- KEYS turn, turns, rated, answers:<version>...
-- ARGV turn_id, time (ms), owner, sealed turn, index of the answer, sealed answer, kept per version, lifetime (ms),
--      version that answered
redis.call('HSET', KEYS[1], 't', ARGV[4], 'owner', ARGV[3], 'r' .. ARGV[5], ARGV[6], 'v' .. ARGV[5], ARGV[9])
if not redis.call('ZSCORE', KEYS[3], ARGV[1]) then
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
end
for i = 4, #KEYS do
  redis.call('ZADD', KEYS[i], ARGV[2], ARGV[1])
  redis.call('ZREMRANGEBYRANK', KEYS[i], 0, -1 - tonumber(ARGV[7]))
  redis.call('PEXPIRE', KEYS[i], ARGV[8])
end
return 1
