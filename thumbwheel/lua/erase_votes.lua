#!lua
-- Removes events from the vote stream; in one step, so that the learner never meets a hole.
-- KEYS votes; ARGV group, event ids...
local ids = {}
for i = 2, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
pcall(redis.call, 'XACK', KEYS[1], ARGV[1], unpack(ids)) -- there is no group before the first cycle
return redis.call('XDEL', KEYS[1], unpack(ids))
