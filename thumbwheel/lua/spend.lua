#!lua
-- Lets a call begin if its caller's limits allow it, on all servers together; all or nothing.
-- Requests and tokens flow back evenly: a minute's worth may be spent at once, and what is spent is earned again at the
-- limit's pace (the generic cell rate algorithm). A call that never says that it ended lapses.
-- KEYS spent, running
-- ARGV call id, requests a minute, chats at once, tokens a minute (0 each: no limit), tokens, longest a call lasts (ms)
-- Returns {} or {which limit, milliseconds until it may work}.
local MINUTE = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local chats = tonumber(ARGV[3])
if chats > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= chats then
    return {'concurrent_chats', 1000}
  end
end
local spent = redis.call('HMGET', KEYS[1], 'requests', 'tokens')
local function after(earned, limit, cost)
  if limit == 0 then
    return 0
  end
  return math.max(tonumber(earned or 0), now) + cost * MINUTE / limit
end
local requests = after(spent[1], tonumber(ARGV[2]), 1)
if requests - now > MINUTE then
  return {'requests_per_minute', math.ceil(requests - now - MINUTE)}
end
local tokens = after(spent[2], tonumber(ARGV[4]), tonumber(ARGV[5]))
if tokens - now > MINUTE then
  return {'tokens_per_minute', math.ceil(tokens - now - MINUTE)}
end
redis.call('HSET', KEYS[1], 'requests', requests, 'tokens', tokens)
redis.call('PEXPIRE', KEYS[1], 2 * MINUTE)
if chats > 0 then
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[6]), ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[6])
end
return {}
