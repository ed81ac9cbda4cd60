#!lua
-- From now on nothing that a person did up to this time is kept.
-- KEYS erased; ARGV rater, time (ms)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
