#!lua
-- KEYS lease, fence; ARGV holder, token, lifetime (ms). Returns 1, or 0 if somebody else has led since.
-- A lapsed lease that nobody took is still ours: the token is the newest.
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1
