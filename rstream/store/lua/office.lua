#!lua flags=allow-oom
-- Be the janitor of a stream, unless another worker is.
--
-- KEYS[1] ns:janitor:<stream>  string: the worker
-- ARGV[1] worker
-- ARGV[2] ttl  milliseconds
-- returns 1 where this worker is it, else 0
-- cost    O(1)
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
