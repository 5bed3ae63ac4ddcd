#!lua flags=no-writes
-- The keys of which entries are put aside in a shard.
--
-- KEYS[1] S:parked:<group>  set of keys; with ":<key>" behind it, the zset of each
-- returns {{key, first id, how many}, ...}
-- cost    O(keys)
-- include: padded
local found = {}
for _, key in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local aside = KEYS[1] .. ':' .. key
  local first = redis.call('ZRANGE', aside, 0, 0)[1]
  if first then found[#found + 1] = {key, plain(first), redis.call('ZCARD', aside)} end
end
return found
