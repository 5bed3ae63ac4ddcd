#!lua flags=allow-oom
-- A worker leaves one shard for good. Its consumer goes too, unless something is still pending for it:
-- XGROUP DELCONSUMER would throw that away.
--
-- KEYS[1] S                          stream
-- KEYS[2] S:alive:<group>:<worker>   string
-- ARGV[1] group
-- ARGV[2] worker
-- returns  deliveries still pending for the worker
-- cost     O(log pending)
redis.call('DEL', KEYS[2])
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if pending.err then return 0 end
if #pending == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
return #pending
