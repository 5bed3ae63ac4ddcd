#!lua flags=no-writes
-- What one shard holds, how far its groups are, and who of them lives: what a janitor has to know.
--
-- KEYS[1] S        stream; per group also S:alive:<group>:<worker>
-- KEYS[2] S:size   hash, see limits.lua
-- KEYS[3] S:marks  zset
-- returns {now (ms), entries, first id or "", counted bytes held (-1: not counted, or not all of it), listpacks, radix
--         nodes, maxlen, maxbytes, soft, groups} ("" = no limit); each group is {name, id: all before it is settled,
--         pending, last-delivered id, unread as Redis has it or -1, 1 if a worker of it lives, {silent worker with
--         something pending, ...}}; false where there is no such shard
-- cost    O(groups · consumers + log marks), two entries copied inside the server
-- include: padded
-- include: floors
-- include: base
local key, size, marks = KEYS[1], KEYS[2], KEYS[3]
if redis.call('EXISTS', key) == 0 then return false end
local time = redis.call('TIME')
local info, raw = {}, redis.call('XINFO', 'STREAM', key)
for n = 1, #raw, 2 do info[raw[n]] = raw[n + 1] end
local first = info['first-entry'] and info['first-entry'][1]

local held, stored = -1, redis.call('HMGET', size, 'total', 'base', 'maxlen', 'maxbytes', 'soft', 'uncounted')
if stored[1] and not stored[6] then
  local lowest = first and (upto(marks, first) or tonumber(stored[2])) or tonumber(stored[1])
  held = tonumber(stored[1]) - lowest
end

local groups = floors(key)
for n, group in ipairs(groups) do
  local lives, silent = 0, {}
  for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group[1])) do
    local consumer = {}
    for at = 1, #flat, 2 do consumer[flat[at]] = flat[at + 1] end
    -- While a cluster moves the slot, it may not say of a key that is not declared: who may live counts as alive.
    if redis.pcall('EXISTS', key .. ':alive:' .. group[1] .. ':' .. consumer.name) ~= 0 then
      lives = 1
    elseif consumer.pending > 0 and string.sub(consumer.name, 1, 1) ~= '~' then
      silent[#silent + 1] = consumer.name
    end
  end
  group[6], group[7] = lives, silent
end
return {
  time[1] * 1000 + math.floor(time[2] / 1000), info.length, first or '', held, info['radix-tree-keys'],
  info['radix-tree-nodes'], stored[3] or '', stored[4] or '', stored[5] or '', groups,
}
