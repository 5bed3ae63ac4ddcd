#!lua flags=allow-oom
-- Read new entries for a worker, from many shards, never more than asked for in all.
-- (COUNT of a plain XREADGROUP is per stream: asking 16 shards for 100 can bring 1,600.)
--
-- KEYS    S of every shard
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] limit   entries in all
-- ARGV[4] first   0-based shard to begin with, so that no shard is always served last
-- ARGV[5] budget  bytes of payload after which no more is read
-- returns         {{0-based shard, entries as XREADGROUP gives them}, ...}
-- cost            O(shards + entries)
local STEP = 32 -- XREADGROUP assigns entries before anybody knows their size
local left, budget, found = tonumber(ARGV[3]), tonumber(ARGV[5]), {}

-- True where the shard may have more.
local function read(shard)
  local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', math.min(left, STEP),
    'STREAMS', KEYS[shard + 1], '>')
  if not reply then return false end
  local entries = reply[1][2]
  found[#found + 1] = {shard, entries}
  left = left - #entries
  for _, entry in ipairs(entries) do budget = budget - #entry[2][2] end
  return #entries == STEP
end

for n = 0, #KEYS - 1 do
  local shard = (n + tonumber(ARGV[4])) % #KEYS
  repeat
    if left <= 0 or budget <= 0 then return found end
  until not read(shard)
end
return found
