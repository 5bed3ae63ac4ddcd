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
-- cost            O(groups)
local key, group, worker = KEYS[1], ARGV[1], ARGV[4]
if redis.call('EXISTS', key) == 0 and (ARGV[3] == '0' or redis.call('EXISTS', key .. ':sealed') == 1) then return -1 end

local function there()
  for _, each in ipairs(redis.call('EXISTS', key) == 1 and redis.call('XINFO', 'GROUPS', key) or {}) do
    for n = 1, #each, 2 do
      if each[n] == 'name' and each[n + 1] == group then return true end
    end
  end
end

local new = not there() -- asked first: who may not make groups need not, where it is there
if new then redis.call('XGROUP', 'CREATE', key, group, ARGV[2], 'MKSTREAM') end
if worker ~= '' then redis.call('XGROUP', 'CREATECONSUMER', key, group, worker) end
return new and 1 or 0
