#!lua flags=no-writes
-- One shard and all its groups at one moment, payloads left where they are.
--
-- KEYS[1] S  stream; per group also S:retry:<group>, S:dead:<group> and S:alive:<group>:<worker>
-- returns {now (ms), entries, first id or false, last id or false, groups}; each group is
--         {name, last-delivered id, pending, oldest pending id or false, first unread id or false, unread or -1,
--          retries, dead letters, {{consumer, pending, 1 if alive}, ...}}
-- cost    O(groups · consumers), plus copying two entries and one per group inside the server
local key = KEYS[1]

local function named(flat)
  local found = {}
  for n = 1, #flat, 2 do found[flat[n]] = flat[n + 1] end
  return found
end

local function after(id)
  local found = redis.pcall('XRANGE', key, '(' .. id, '+', 'COUNT', 1)
  return found[1] and found[1][1] or false -- after the last possible id comes nothing: there it answers an error
end

-- Redis's own lag is wrong or nil after trims and deletes, and in groups made mid-stream. What is surely right:
-- nothing after the last delivered, or everything, or Redis's count where no entry was ever removed.
local function unread(stream, first, next_id, group)
  if not next_id then return 0 end
  if next_id == first then return stream.length end
  local whole = stream['entries-added'] == stream.length and stream['max-deleted-entry-id'] == '0-0'
  if whole and group.lag and group['entries-read'] then return group.lag end
  return -1
end

local function consumers(group)
  local found = {}
  for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
    local info = named(flat)
    found[#found + 1] = {info.name, info.pending, redis.call('EXISTS', key .. ':alive:' .. group .. ':' .. info.name)}
  end
  return found
end

local function about(stream, first, group)
  local next_id = after(group['last-delivered-id'])
  return {
    group.name, group['last-delivered-id'], group.pending,
    redis.call('XPENDING', key, group.name)[2], next_id, unread(stream, first, next_id, group),
    redis.call('ZCARD', key .. ':retry:' .. group.name), redis.call('XLEN', key .. ':dead:' .. group.name),
    consumers(group.name),
  }
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', key) == 0 then return {now, 0, false, false, {}} end
local stream = named(redis.call('XINFO', 'STREAM', key))
local first, last = stream['first-entry'], stream['last-entry']
first, last = first and first[1], last and last[1]
local groups = {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  groups[#groups + 1] = about(stream, first, named(flat))
end
return {now, stream.length, first, last, groups}
