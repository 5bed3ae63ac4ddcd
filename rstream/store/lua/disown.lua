#!lua flags=allow-oom
-- Stop owning shards: those of them that the worker owns.
--
-- KEYS    S:owner:<group> of each shard: string, worker|epoch
-- ARGV[1] worker
-- returns how many were owned
-- cost    O(shards)
local count = 0
for _, key in ipairs(KEYS) do
  local owner = redis.call('GET', key)
  if owner and string.match(owner, '^(.*)|') == ARGV[1] then count = count + redis.call('DEL', key) end
end
return count
