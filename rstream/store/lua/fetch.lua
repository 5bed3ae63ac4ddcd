#!lua flags=allow-oom
-- Read new entries for a worker, from many shards, never more than asked for in all; of an ordered group only from
-- those that this worker owns (the fence: one that was frozen can read nothing after it lost the shard).
-- (COUNT of a plain XREADGROUP is per stream: asking 16 shards for 100 can bring 1,600.)
--
-- KEYS    per shard: S (stream), S:owner:<group> (string)
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] limit   entries in all
-- ARGV[4] budget  bytes of payload after which no more is read
-- ARGV[5] begun   0 = what is read does not count as begun: nothing is burnt where this worker dies before it starts it
-- ARGV[6...]      per shard: the worker|epoch by which it is owned, "" where the group is not ordered
-- returns         msgpack {{{0-based shard, entries as XREADGROUP gives them}, ...}, {0-based shard, ...} not owned any
--                 more, 1 where there may be more to read}: as one string it is made in less time than as a reply, and read in C
-- cost            O(shards + entries)
local STEP = 32 -- XREADGROUP assigns entries before anybody knows their size
local left, budget, found, gone = tonumber(ARGV[3]), tonumber(ARGV[4]), {}, {}

-- True where the shard may have more.
local function read(shard)
  local count = math.min(left, STEP)
  local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', count, 'STREAMS', KEYS[2 * shard + 1], '>')
  if not reply then return false end
  local entries = reply[1][2]
  if ARGV[5] == '0' then
    local ids = {}
    for n, entry in ipairs(entries) do ids[n] = entry[1] end
    ids[#ids + 1], ids[#ids + 2], ids[#ids + 3] = 'RETRYCOUNT', 0, 'JUSTID'
    redis.call('XCLAIM', KEYS[2 * shard + 1], ARGV[1], ARGV[2], 0, unpack(ids))
  end
  found[#found + 1] = {shard, entries}
  left = left - #entries
  for _, entry in ipairs(entries) do budget = budget - #entry[2][2] end
  return #entries == count
end

for shard = 0, #KEYS / 2 - 1 do
  local token = ARGV[6 + shard]
  if token ~= '' and redis.call('GET', KEYS[2 * shard + 2]) ~= token then
    gone[#gone + 1] = shard
  else
    repeat
      if left <= 0 or budget <= 0 then return cmsgpack.pack({found, gone, 1}) end
    until not read(shard)
  end
end
return cmsgpack.pack({found, gone, 0})
