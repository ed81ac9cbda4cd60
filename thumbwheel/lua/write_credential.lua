#!lua
-- Writes a key's record if it still is what the caller read.
-- KEYS credentials; ARGV key id, old record ('' if there was none), new record
local kept = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if kept ~= ARGV[2] and kept ~= ARGV[3] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
