#!lua flags=allow-oom
-- Ring the bell that all workers of a namespace hear.
-- (allow-oom: it keeps so many rings at most, and when memory is full a handler may have to be stopped.)
--
-- KEYS[1] ns:bell  stream
-- ARGV[1] length   rings that are kept, about
-- ARGV[2...]       fields and values, see bell.py
-- returns 1
-- cost    O(1)
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
return 1
