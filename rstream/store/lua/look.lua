#!lua flags=no-writes
-- How a group stands in shards: who owns each, and what is left to do there.
--
-- KEYS    per shard: S (stream), S:owner:<group> (string), S:epoch:<group> (string)
-- ARGV[1] group
-- returns per shard {owner as worker|epoch or "", last epoch, 1 if something is unread, pending, last-delivered id};
--         a shard without the group has everything unread, and "" for the id; one that does not exist has nothing
-- cost    O(shards), plus copying one entry a shard inside the server
local function position(key)
  local all = redis.pcall('XINFO', 'GROUPS', key)
  for _, flat in ipairs(all) do
    local info = {}
    for n = 1, #flat, 2 do info[flat[n]] = flat[n + 1] end
    if info.name == ARGV[1] then return info['last-delivered-id'], info.pending end
  end
end

local shards = {}
for n = 1, #KEYS, 3 do
  local key = KEYS[n]
  local at, pending = position(key)
  local unread = redis.call('EXISTS', key)
  if at then
    local following = redis.pcall('XRANGE', key, '(' .. at, '+', 'COUNT', 1)
    unread = following[1] and 1 or 0 -- after the last possible id comes nothing: there it answers an error
  end
  local epoch = tonumber(redis.call('GET', KEYS[n + 2]) or 0)
  shards[#shards + 1] = {redis.call('GET', KEYS[n + 1]) or '', epoch, unread, pending or 0, at or ''}
end
return shards
