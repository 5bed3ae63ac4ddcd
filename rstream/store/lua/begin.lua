#!lua flags=allow-oom
-- Burn an attempt before a taken-over delivery is run again, fenced like a settle.
--
-- KEYS[1] S       stream
-- KEYS[2] S:lost  hash: group -> what it lost, see lose.lua
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] id
-- ARGV[4] attempt the number this run will have: one more than the deliveries so far
-- returns         1, or 0 where the entry is not this worker's any more (nothing was changed), or -1 where it was dropped
--                 meanwhile (that is written down)
-- cost            O(log pending); sending it twice burns one attempt
-- include: padded
-- include: lose
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
local attempt = tonumber(ARGV[4])
if not pending or pending[2] ~= ARGV[2] then return 0 end
if pending[4] == attempt then return 1 end
if pending[4] ~= attempt - 1 then return 0 end
if redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'RETRYCOUNT', attempt, 'JUSTID')[1] then return 1 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
lose(KEYS[2], ARGV[1], {{ARGV[3], ARGV[3], 1}}, '')
return -1
