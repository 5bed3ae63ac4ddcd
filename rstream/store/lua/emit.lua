#!lua
-- Ack deliveries of one shard and append what their handlers returned to shards of another stream: all of a delivery
-- or nothing of it, each only if it still belongs to this worker and attempt (the fence).
-- (No allow-oom: when memory is full, what would be appended waits, and its delivery with it.)
--
-- KEYS[1] S                stream
-- KEYS[2] S:memo:<group>:  with an id behind it, the hash of that delivery's checkpoint and steps
-- KEYS[3] S:done           hash, see add.lua
-- KEYS[4...]               per shard that is appended to: S (stream), S:sealed (string), S:size (hash), S:marks (zset)
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] outcomes  msgpack array of {id, attempt, marker, ttl, emits}
--           marker, ttl: as in settle.lua
--           emits: {0-based target, payload, key, event id, headers, 0-based target, ...} (raw strings, "" = none)
-- ARGV[4] again  as in settle.lua
-- returns  {{0-based index, owner or "", deliveries}, ...} of the refused: nothing was changed for them
-- errors   nothing at all was changed:
--          SEALED: a shard that would be appended to is sealed, or there is no such shard
--          FULL: one would pass its limit by more than SPARE, and what is not processed is in the way
-- cost     O(outcomes · log pending + emits), and where targets are full, what room.lua says
-- include: append
-- include: padded
-- include: floors
-- include: base
-- include: room
-- include: add
local SPARE = 1 / 8 -- Of the limit: a group may emit to what it reads itself, and has to end a delivery to make room.
local key, group, worker = KEYS[1], ARGV[1], ARGV[2]
local refused, done = {}, {}

for n = 4, #KEYS, 4 do -- first, for an error in the midst would leave half of it done
  if redis.call('EXISTS', KEYS[n]) == 0 or redis.call('EXISTS', KEYS[n + 1]) == 1 then
    return redis.error_reply('SEALED ' .. KEYS[n])
  end
end

local outcomes = cmsgpack.unpack(ARGV[3])

local function emitted_to(target)
  local count, size = 0, 0
  for _, outcome in ipairs(outcomes) do
    local emits = outcome[5]
    for at = 1, #emits, 5 do
      if emits[at] == target then
        count, size = count + 1, size + weight(emits[at + 1], emits[at + 2], emits[at + 3], emits[at + 4])
      end
    end
  end
  return count, size
end

local tallies = {}
for n = 6, #KEYS, 4 do
  if redis.call('EXISTS', KEYS[n]) == 1 then
    local count, size = emitted_to((n - 6) / 4)
    local tally = room(KEYS[n - 2], KEYS[n], KEYS[n + 1], count, size, SPARE)
    if tally and tally.full then return redis.error_reply('FULL shard ' .. KEYS[n - 2]) end
    tallies[(n - 6) / 4] = tally
  end
end

for n, outcome in ipairs(outcomes) do
  local id, attempt, marker, ttl, emits = unpack(outcome)
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  if not pending or pending[2] ~= worker or pending[4] ~= attempt then
    refused[#refused + 1] = {n - 1, pending and pending[2] or '', pending and pending[4] or 0}
    if pending or ARGV[4] == '0' then done.fenced = (done.fenced or 0) + 1 end
  else
    for at = 1, #emits, 5 do
      local e, k, i, h = emits[at + 1], emits[at + 2], emits[at + 3], emits[at + 4]
      local new, tally = append(KEYS[4 + 4 * emits[at]], '*', e, k, i, h), tallies[emits[at]]
      if tally then tally.add(new, weight(e, k, i, h)) end
    end
    -- Last: were an append to fail, the delivery would still be pending.
    if marker ~= '' then redis.call('SET', key .. ':once:' .. group .. ':' .. marker, id, 'PX', ttl) end
    redis.call('XACK', key, group, id)
    done.acked = (done.acked or 0) + 1
    redis.call('UNLINK', KEYS[2] .. id)
  end
end
for _, tally in pairs(tallies) do tally.close() end
add(KEYS[3], group, done)
return refused
