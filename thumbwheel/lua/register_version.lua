#!lua
-- KEYS versions, version_order, changes, live; ARGV name, sealed record, adapter id, kept changes
-- Returns 1, or 0 if the name is taken by another record.
local kept = redis.call('HGET', KEYS[1], ARGV[1])
if kept then
  return kept == ARGV[2] and 1 or 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
local live = string.match(redis.call('GET', KEYS[4]) or '', '^%S+') or 'base'
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'v', ARGV[2], 'l', live)
return 1
