#!lua flags=no-writes
-- The names of a group's consumers in shards: whose alive keys recover.lua is to be given.
--
-- KEYS    per shard: S (stream)
-- ARGV[1] group
-- ARGV[2] worker  the one that asks
-- returns per shard {name, ...}, without the worker's own and those that are no workers (~...); none where the group is
--         missing: the fetch finds that out and heals it
-- cost    O(shards · consumers)
local found = {}
for shard, key in ipairs(KEYS) do
  local names = {}
  local all = redis.pcall('XINFO', 'CONSUMERS', key, ARGV[1])
  for _, flat in ipairs(all) do
    for n = 1, #flat, 2 do
      local name = flat[n] == 'name' and flat[n + 1]
      if name and name ~= ARGV[2] and string.sub(name, 1, 1) ~= '~' then names[#names + 1] = name end
    end
  end
  found[shard] = names
end
return found
