#!lua flags=no-writes
-- What is put aside of keys in a shard.
--
-- KEYS    S:parked:<group>:<key> of each key: zset of ids, padded so that they sort
-- returns per key {first id or false, how many}
-- cost    O(keys)
-- include: padded
local found = {}
for n, aside in ipairs(KEYS) do
  local first = redis.call('ZRANGE', aside, 0, 0)[1]
  found[n] = {first and plain(first), redis.call('ZCARD', aside)}
end
return found
