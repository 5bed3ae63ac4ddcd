#!lua flags=allow-oom
-- Make a group of one shard, also when memory is full: what waits there has to be drained.
--
-- KEYS[1] S      stream
-- ARGV[1] group
-- ARGV[2] start  id after which the group reads, or $
-- ARGV[3] make   1 = make the stream where it does not exist; 0 = it is a shard of an older generation: one that is not
--                there any more is drained, and must not come back, for it would not be sealed
-- returns        1 if the group is new, 0 if it was there, -1 if the stream is not
-- cost           O(1)
if ARGV[3] == '0' and redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
if not made.err then return 1 end
if string.find(made.err, 'BUSYGROUP', 1, true) then return 0 end
return made
