#!lua
-- Freezes the learner.
-- KEYS fence, frozen; ARGV token, sealed facts
-- Returns 0, and does nothing, if another learner has led since.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2])
return 1
