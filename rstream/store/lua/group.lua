#!lua flags=allow-oom
-- Make a group of one shard, also when memory is full: what waits there has to be drained.
--
-- KEYS[1] S       stream; where it is missing, also S:sealed
-- ARGV[1] group
-- ARGV[2] start   id after which the group reads, or $
-- ARGV[3] make    1 = make the stream where it does not exist; 0 = it is a shard of an older generation: one that is
--                 not there any more is drained, and must not come back, for it would not be sealed
-- ARGV[4] worker  that takes part from now, "" = none: so that it is seen before it has read anything
-- returns         1 if the group is new, 0 if it was there, -1 if the stream is not
-- cost            O(1)
local key, group, worker = KEYS[1], ARGV[1], ARGV[4]
if redis.call('EXISTS', key) == 0 and (ARGV[3] == '0' or redis.call('EXISTS', key .. ':sealed') == 1) then return -1 end
local made = redis.pcall('XGROUP', 'CREATE', key, group, ARGV[2], 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
if worker ~= '' then redis.call('XGROUP', 'CREATECONSUMER', key, group, worker) end
return made.err and 0 or 1
