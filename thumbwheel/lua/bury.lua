#!lua
-- Takes a vote that cannot be read out of the learner's way; once, however often it is asked for.
-- KEYS votes, dead; ARGV group, id, bytes, kept
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'id', ARGV[2], 'v', ARGV[3])
return 1
