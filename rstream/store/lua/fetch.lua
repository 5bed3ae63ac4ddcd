#!lua flags=allow-oom
-- Read new entries for a worker, from many shards, never more than asked for in all.
-- (COUNT of a plain XREADGROUP is per stream: asking 16 shards for 100 can bring 1,600.)
--
-- KEYS    S of every shard
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] limit   entries in all
-- ARGV[4] first   0-based shard to begin with, so that no shard is always served last
-- returns         {{0-based shard, entries as XREADGROUP gives them}, ...}
-- cost            O(shards + entries)
local left, found = tonumber(ARGV[3]), {}
for n = 0, #KEYS - 1 do
  if left <= 0 then break end
  local shard = (n + tonumber(ARGV[4])) % #KEYS
  local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', KEYS[shard + 1], '>')
  if reply then
    local entries = reply[1][2]
    left = left - #entries
    found[#found + 1] = {shard, entries}
  end
end
return found
