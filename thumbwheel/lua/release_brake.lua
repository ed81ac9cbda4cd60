#!lua
-- Lets the learner go on, with the batch that it was frozen at.
-- KEYS frozen, pardoned; ARGV sealed facts as they were read, digest of the batch
-- Returns 0, and does nothing, if it is not frozen, or for something else meanwhile.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[2])
return 1
