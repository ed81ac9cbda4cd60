#!lua
-- A chat call has ended: its place is free, and tokens that it did not use are given back.
-- KEYS spent, running; ARGV call id, tokens a minute (0: no limit), tokens not used
redis.call('ZREM', KEYS[2], ARGV[1])
local limit = tonumber(ARGV[2])
local earned = redis.call('HGET', KEYS[1], 'tokens')
if limit > 0 and earned then
  redis.call('HSET', KEYS[1], 'tokens', tonumber(earned) - tonumber(ARGV[3]) * 60000 / limit)
end
return 1
