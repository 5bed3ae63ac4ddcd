#!lua flags=allow-oom
-- Stop owning shards, each only if it still is owned so.
--
-- KEYS    S:owner:<group> of each shard: string
-- ARGV    worker|epoch of each
-- returns how many were owned
-- cost    O(shards)
local count = 0
for n, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[n] then count = count + redis.call('DEL', key) end
end
return count
