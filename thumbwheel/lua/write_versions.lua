#!lua
-- Changes versions' records and the live pointer together, if they still are what the caller read.
-- With a cycle's keys it is that cycle's commit: lineage, acknowledgement and release are one step under the fence.
-- KEYS versions, live, changes [, fence, manifest, done, lineage, votes]
-- ARGV old pointer, new pointer, name of the new live version, kept changes, n, n times (name, old record, new record)
--      [, token, cycle_id, sealed cycle, group, event ids...]
-- Returns 'OK', 'STALE' (read again), 'FENCED' or 'NO_MANIFEST'.
local n = tonumber(ARGV[5])
local rest = 6 + 3 * n
local commit = #KEYS > 3

if commit then
  if redis.call('SISMEMBER', KEYS[6], ARGV[rest + 1]) == 1 then
    return 'OK' -- a repeat of a commit whose answer was lost
  end
  if redis.call('GET', KEYS[4]) ~= ARGV[rest] then
    return 'FENCED'
  end
  if redis.call('HGET', KEYS[5], 'cycle_id') ~= ARGV[rest + 1] then
    return 'NO_MANIFEST'
  end
end

local pointer = redis.call('GET', KEYS[2]) or ''
local fresh, written = pointer == ARGV[1], pointer == ARGV[2]
for i = 6, rest - 1, 3 do
  local record = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  fresh = fresh and record == ARGV[i + 1]
  written = written and record == ARGV[i + 2]
end
if written and not commit then
  return 'OK' -- a repeat, or nothing to change
end
if not fresh then
  return 'STALE'
end

for i = 6, rest - 1, 3 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'v', ARGV[i + 2], 'l', ARGV[3])
end
if ARGV[2] ~= pointer then
  redis.call('SET', KEYS[2], ARGV[2])
end
if commit then
  redis.call('SADD', KEYS[6], ARGV[rest + 1])
  redis.call('LPUSH', KEYS[7], ARGV[rest + 2])
  for i = rest + 4, #ARGV do
    redis.call('XACK', KEYS[8], ARGV[rest + 3], ARGV[i])
  end
  redis.call('DEL', KEYS[5])
end
return 'OK'
