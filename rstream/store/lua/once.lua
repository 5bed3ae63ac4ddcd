#!lua
-- Append events to one shard, each only if its event id was not appended so before: for consumers on another server,
-- whose ack cannot be in the same call. Sending it twice adds nothing.
--
-- KEYS[1]    S                     stream: the shard
-- KEYS[2]    S:sealed              string: nothing is appended any more
-- KEYS[3]    S:size                hash, see limits.lua
-- KEYS[4]    S:marks               zset
-- KEYS[5...] S:emitted:<event id>  string: the entry id, one key for each event
-- ARGV[1] ttl     milliseconds to remember the events for
-- ARGV[2] events  msgpack array: payload, key, event id, headers (raw strings, "" = none), payload, ...
-- returns  {0-based event, ...} of those that are not in the shard: it is sealed, or there is no such shard
-- errors   FULL: it would pass a limit by more than SPARE, and what is not processed is in the way: nothing was added
-- cost     O(events), and where the shard is full, what room.lua says
-- include: append
-- include: padded
-- include: floors
-- include: base
-- include: room
local SPARE = 1 / 8 -- as in emit.lua
local events = cmsgpack.unpack(ARGV[2])
local open = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('EXISTS', KEYS[2]) == 0
local left, size = {}, 0
for n = 0, #KEYS - 5 do
  -- A write also where the event is known: see publish.lua about WAIT.
  if redis.call('PEXPIRE', KEYS[5 + n], ARGV[1]) == 0 then
    left[#left + 1] = n
    size = size + weight(events[4 * n + 1], events[4 * n + 2], events[4 * n + 3], events[4 * n + 4])
  end
end
if not open or #left == 0 then return left end

local tally = room(KEYS[1], KEYS[3], KEYS[4], #left, size, SPARE)
if tally and tally.full then return redis.error_reply('FULL shard ' .. KEYS[1]) end
for _, n in ipairs(left) do
  local e, k, i, h = events[4 * n + 1], events[4 * n + 2], events[4 * n + 3], events[4 * n + 4]
  local id = append(KEYS[1], '*', e, k, i, h)
  redis.call('SET', KEYS[5 + n], id, 'PX', ARGV[1])
  if tally then tally.add(id, weight(e, k, i, h)) end
end
if tally then tally.close() end
return {}
