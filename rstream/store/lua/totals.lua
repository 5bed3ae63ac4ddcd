#!lua flags=no-writes
-- What was counted of one shard, ever, and how old the oldest entry is that each group has not processed. Payloads are
-- left where they are.
--
-- KEYS[1] S       stream, which may be gone
-- KEYS[2] S:done  hash: <kind>:<group> -> how many; "added" where the stream is gone
-- KEYS[3] S:lost  hash: group -> what it lost, see lose.lua
-- returns {now (ms), entries that were ever added, {<kind>:<group>, how many, ...}, {group, how many it lost, ...},
--         {group, ms of its oldest entry that is not processed or -1, ...}, ms of the first entry or -1}
-- cost    O(groups), one entry for each and two more copied inside the server
local key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function named(flat)
  local found = {}
  for n = 1, #flat, 2 do found[flat[n]] = flat[n + 1] end
  return found
end

local function ms_of(id) return tonumber(string.match(id, '^%d+')) end

local function oldest(group)
  local pending = group.pending > 0 and redis.call('XPENDING', key, group.name, '-', '+', 1)[1]
  local found = redis.pcall('XRANGE', key, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
  local unread = not found.err and found[1] -- after the last possible id comes nothing: there it answers an error
  local one, other = pending and ms_of(pending[1]), unread and ms_of(unread[1])
  return one and other and math.min(one, other) or one or other or -1
end

local lost, ages = {}, {}
local stored = redis.call('HGETALL', KEYS[3])
for n = 1, #stored, 2 do
  lost[n], lost[n + 1] = stored[n], cmsgpack.unpack(stored[n + 1])[1]
end

local counts, added, first = {}, 0, -1
stored = redis.call('HGETALL', KEYS[2])
for n = 1, #stored, 2 do
  if stored[n] == 'added' then
    added = tonumber(stored[n + 1])
  else
    counts[#counts + 1], counts[#counts + 2] = stored[n], stored[n + 1]
  end
end

if redis.call('EXISTS', key) == 1 then
  local stream = named(redis.call('XINFO', 'STREAM', key))
  added = stream['entries-added']
  if stream['first-entry'] then first = ms_of(stream['first-entry'][1]) end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local group = named(flat)
    ages[#ages + 1] = group.name
    ages[#ages + 1] = oldest(group)
  end
end
return {now, added, counts, lost, ages, first}
