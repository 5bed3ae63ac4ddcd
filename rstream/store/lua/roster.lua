#!lua flags=no-writes
-- The workers that lived lately.
--
-- KEYS[1] ns:workers  zset: worker -> its last beat (ms)
-- returns {now (ms), {worker, last beat, ...}, the longest silent first}
-- cost    O(workers)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return {now, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')}
