#!lua
-- Removes a turn of a person, with its votes.
-- KEYS turn, current, turns, rated, owned_by, rated_by, answers:<version>...
-- ARGV turn_id
-- Returns how many votes went.
local votes = redis.call('HLEN', KEYS[2])
redis.call('DEL', KEYS[1], KEYS[2])
for i = 3, #KEYS do
  redis.call('ZREM', KEYS[i], ARGV[1])
end
return votes
