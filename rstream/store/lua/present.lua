#!lua flags=allow-oom
-- Say who a worker is and what it does, for whoever looks at the fleet; also where memory is full.
--
-- KEYS[1] ns:worker:<id>  string: what it says of itself, msgpack, see workers.py
-- ARGV[1] what it says
-- ARGV[2] ttl  milliseconds
-- returns 1
-- cost    O(1)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
