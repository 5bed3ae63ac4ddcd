#!lua flags=allow-oom
-- Make a group of one shard, also when memory is full: what waits there has to be drained.
--
-- KEYS[1] S      stream; made where it does not exist
-- ARGV[1] group
-- ARGV[2] start  id after which the group reads, or $
-- returns        1 if the group is new, 0 if it was there
-- cost           O(1)
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
if not made.err then return 1 end
if string.find(made.err, 'BUSYGROUP', 1, true) then return 0 end
return made
