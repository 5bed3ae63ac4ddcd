#!lua flags=allow-oom
-- Have the history of a stream know that a group was removed: if there is one of that name again, it counts from 0, and
-- that is no loss. A sample that is being taken does not count: it may have seen the group before or after.
--
-- KEYS[1] ns:history:<stream>  hash, see history.py
-- ARGV[1] group
-- returns 1, or 0 where there is no history
-- cost    O(1)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'gone:' .. ARGV[1], 1)
redis.call('HINCRBY', KEYS[1], 'seq', 1)
return 1
