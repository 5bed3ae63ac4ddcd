#!lua flags=no-writes
-- One shard and all its groups at one moment, payloads left where they are.
--
-- KEYS[1] S  stream; per group also S:retry:<group>, S:dead:<group>, S:owner:<group>, S:epoch:<group> and
--            S:alive:<group>:<worker>
-- returns {now (ms), entries, first id or false, last id or false, groups, last id that was given or false}; each group
--         is {name, last-delivered id, pending, oldest pending id or false, its consumer or false, first unread id or
--          false, unread or -1, retries, dead letters, {{consumer, pending, 1 if alive}, ...},
--          owner as worker|epoch or false, last epoch or false}
-- cost    O(groups · consumers), plus copying two entries and one per group inside the server; where Redis cannot tell
--         how many are unread, up to COUNTED or COUNTED_BYTES of them per group
local key = KEYS[1]
local COUNTED, COUNTED_BYTES, STEP = 128, 256 * 1024, 32

local function named(flat)
  local found = {}
  for n = 1, #flat, 2 do found[flat[n]] = flat[n + 1] end
  return found
end

local function after(id, count)
  local found = redis.pcall('XRANGE', key, '(' .. id, '+', 'COUNT', count)
  return found.err and {} or found -- after the last possible id comes nothing: there it answers an error
end

local function bytes(entry)
  local sum = 0
  for _, part in ipairs(entry[2]) do sum = sum + #part end
  return sum
end

-- A few can be counted, whatever was removed before.
local function counted(next_entry)
  local count, left, last = 1, COUNTED_BYTES - bytes(next_entry), next_entry
  while count < COUNTED and left > 0 do
    local step = math.max(1, math.min(STEP, math.floor(left / (bytes(last) + 1))))
    local page = after(last[1], step)
    for _, entry in ipairs(page) do left = left - bytes(entry) end
    count = count + #page
    if #page < step then return count end
    last = page[#page]
  end
  return -1
end

-- Redis's own lag is wrong or nil after trims and deletes, and in groups made or moved mid-stream. What is surely right:
-- nothing after the last delivered, or everything, or Redis's count where no entry was ever removed, or ours.
local function unread(stream, first, next_entry, group)
  if not next_entry then return 0 end
  if next_entry[1] == first then return stream.length end
  local whole = stream['entries-added'] == stream.length and stream['max-deleted-entry-id'] == '0-0'
  if whole and group.lag and group['entries-read'] then return group.lag end
  return counted(next_entry)
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
  local name, next_entry = group.name, after(group['last-delivered-id'], 1)[1]
  local oldest = redis.call('XPENDING', key, name, '-', '+', 1)[1]
  return {
    name, group['last-delivered-id'], group.pending, oldest and oldest[1] or false, oldest and oldest[2] or false,
    next_entry and next_entry[1] or false, unread(stream, first, next_entry, group),
    redis.call('ZCARD', key .. ':retry:' .. name), redis.call('XLEN', key .. ':dead:' .. name),
    consumers(name),
    redis.call('GET', key .. ':owner:' .. name), redis.call('GET', key .. ':epoch:' .. name),
  }
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', key) == 0 then return {now, 0, false, false, {}, false} end
local stream = named(redis.call('XINFO', 'STREAM', key))
local first, last = stream['first-entry'], stream['last-entry']
first, last = first and first[1], last and last[1]
local groups = {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  groups[#groups + 1] = about(stream, first, named(flat))
end
return {now, stream.length, first, last, groups, stream['last-generated-id']}
