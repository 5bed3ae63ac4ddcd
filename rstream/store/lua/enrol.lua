#!lua flags=allow-oom
-- Note in the list of workers that one lives now, and forget those that have been silent for long.
--
-- KEYS[1] ns:workers  zset: worker -> its last beat (ms)
-- ARGV[1] worker
-- ARGV[2] forget  milliseconds of silence
-- returns now (ms)
-- cost    O(log workers)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
return now
