#!lua flags=allow-oom
-- Ack first attempts of which nothing was kept, in many shards: what nearly all deliveries end with. Each only if it
-- still belongs to this worker and is pending in its first attempt (the fence). See settle.lua for all others.
--
-- KEYS    per shard: S (stream), S:done (hash, see add.lua)
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] ids     msgpack array, of each shard an array of ids, best in their order
-- ARGV[4] again  1 = this was sent before, and may have been done: what is settled already is not refused for the fence
-- returns         {{0-based index over all ids, owner or "", deliveries}, ...} of the refused: nothing was changed for
--                 them
-- cost            O(shards + ids · log pending)
-- include: add
local group, worker = ARGV[1], ARGV[2]
local before, refused, fenced = 0, {}, 0

-- What a worker settles together mostly lies together: one look from the first to the last shows the attempts of nearly
-- all, at a fifth of what a look at each costs. By id; what is not in there has to be looked at.
local function attempts(key, ids)
  local found = {}
  if #ids > 3 then
    local page = redis.call('XPENDING', key, group, ids[1], ids[#ids], 4 * #ids, worker)
    for _, pending in ipairs(page) do found[pending[1]] = pending[4] end
  end
  return found
end

local function ours(key, id, index)
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  if pending and pending[2] == worker and pending[4] == 1 then return true end
  refused[#refused + 1] = {index, pending and pending[2] or '', pending and pending[4] or 0}
  if pending or ARGV[4] == '0' then fenced = fenced + 1 end
  return false
end

for shard, ids in ipairs(cmsgpack.unpack(ARGV[3])) do
  local key, acks, done = KEYS[2 * shard - 1], {}, {}
  fenced = 0
  local found = attempts(key, ids)
  for n, id in ipairs(ids) do
    if found[id] == 1 or ours(key, id, before + n - 1) then acks[#acks + 1] = id end
  end
  -- unpack() is bounded by Lua's C stack
  for from = 1, #acks, 1000 do redis.call('XACK', key, group, unpack(acks, from, math.min(from + 999, #acks))) end
  if acks[1] then done.acked = #acks end
  if fenced > 0 then done.fenced = fenced end
  add(KEYS[2 * shard], group, done)
  before = before + #ids
end
return refused
