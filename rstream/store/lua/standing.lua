#!lua flags=no-writes
-- Where the archive of one shard stands, as Redis knows it.
--
-- KEYS[1] S      stream
-- KEYS[2] S:size hash, see limits.lua
-- ARGV[1] group  ~archive
-- returns {now (ms), last id that was given, how many entries were ever added, how many there are, first id or "",
--         last-delivered id of the group or "" where it does not exist, first id after that or "", how many entries,
--         and bytes, the shard may hold, or ""}; {now} where there is no such stream
-- cost    O(groups), plus copying three entries inside the server
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', KEYS[1]) == 0 then return {now} end

local function named(flat)
  local found = {}
  for n = 1, #flat, 2 do found[flat[n]] = flat[n + 1] end
  return found
end

local stream, position, following = named(redis.call('XINFO', 'STREAM', KEYS[1])), '', ''
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = named(flat)
  if group.name == ARGV[1] then position = group['last-delivered-id'] end
end
if position ~= '' then
  local found = redis.pcall('XRANGE', KEYS[1], '(' .. position, '+', 'COUNT', 1)
  following = not found.err and found[1] and found[1][1] or '' -- after the last possible id comes nothing
end
local first, limits = stream['first-entry'], redis.call('HMGET', KEYS[2], 'maxlen', 'maxbytes')
return {
  now, stream['last-generated-id'], stream['entries-added'], stream.length, first and first[1] or '', position, following,
  limits[1] or '', limits[2] or '',
}
