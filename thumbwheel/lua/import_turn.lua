#!lua
-- A turn from elsewhere. Whatever is kept of it already stays as it is; running it twice is the same as once.
-- KEYS turn, turns, owned_by, erased
-- ARGV turn_id, now (ms), when the owner asked (ms), owner, sealed turn, then index and sealed answer of every answer
-- Returns 0, and writes nothing, if the owner was erased since they asked.
local erased = redis.call('HGET', KEYS[4], ARGV[4])
if erased and tonumber(ARGV[3]) <= tonumber(erased) then
  return 0
end
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[4] then
  return 1 -- somebody else's: the vote will be refused, too
end
if not owner then
  redis.call('HSET', KEYS[1], 't', ARGV[5], 'owner', ARGV[4])
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
  redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
end
for i = 6, #ARGV, 2 do
  redis.call('HSETNX', KEYS[1], 'r' .. ARGV[i], ARGV[i + 1])
end
return 1
