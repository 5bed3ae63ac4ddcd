#!lua flags=allow-oom
-- Take part in an ordered group for a while, and see who else does.
--
-- KEYS[1] ns:members:<stream>:<group>  zset: worker -> until when (ms)
-- ARGV[1] worker
-- ARGV[2] lease  ms; 0 = leave
-- returns the workers that take part
-- cost    O(members)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[1], 10 * ARGV[2])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now))
return redis.call('ZRANGE', KEYS[1], 0, -1)
