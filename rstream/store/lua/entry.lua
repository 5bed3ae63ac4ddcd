#!lua flags=no-writes
-- One entry, and how every group stands to it, at one moment.
--
-- KEYS[1] S  stream; per group also S:retry:<group>, S:memo:<group>:<id> and S:alive:<group>:<worker>
-- ARGV[1] id
-- ARGV[2] most  bytes of a checkpoint that is brought
-- returns {now (ms), its fields and values in turn or false, first id of the shard or false, last id that was given or
--         false, {{group, last-delivered id, what holding.lua tells where it is pending or false}, ...}}
-- cost    O(groups · log pending), plus copying the entry
-- include: holding
local stream, id, most = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', stream) == 0 then return {now, false, false, false, {}} end

local function named(flat)
  local found = {}
  for n = 1, #flat, 2 do found[flat[n]] = flat[n + 1] end
  return found
end

local groups = {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local group = named(flat)
  local pending = redis.call('XPENDING', stream, group.name, id, id, 1)[1]
  groups[#groups + 1] = {
    group.name, group['last-delivered-id'], pending and holding(stream, group.name, pending, most) or false,
  }
end
local entry = redis.call('XRANGE', stream, id, id)[1]
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local info = named(redis.call('XINFO', 'STREAM', stream))
return {now, entry and entry[2] or false, first and first[1] or false, info['last-generated-id'], groups}
