#!lua
-- Drops the manifest of the cycle under way, so that its votes are frozen anew; an unreadable one is set aside.
-- KEYS fence, manifest, dead; ARGV token, unreadable (0 or 1), kept
-- Returns 0, and does nothing, if another learner has led since.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
local kept = redis.call('HMGET', KEYS[2], 'cycle_id', 'data')
if kept[2] and ARGV[2] == '1' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 'id', kept[1] or '', 'v', kept[2])
end
redis.call('DEL', KEYS[2])
return 1
