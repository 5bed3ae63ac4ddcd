#!lua flags=no-writes
-- Where a window of one shard ends, and where the shard begins, payloads left where they are.
--
-- KEYS[1] S        stream
-- ARGV[1] start    id
-- ARGV[2] end      id
-- ARGV[3] archive  name of its group; "" = do not tell where the shard begins
-- returns          {newest id of the window or "", first id of the shard or "", whether the archive may have what comes
--                  before that: 1 = it is archived, or something was removed; 2 = nothing was ever there; 0 = no,
--                  up to which id it is archived or ""}
-- cost             O(1), plus copying two entries inside the server; with `archive` O(groups) and one more
local key = KEYS[1]
local newest = redis.call('XREVRANGE', key, ARGV[2], ARGV[1], 'COUNT', 1)[1]
newest = newest and newest[1] or ''
if ARGV[3] == '' then return {newest, '', 0, ''} end
if redis.call('EXISTS', key) == 0 then return {newest, '', 2, ''} end

local function named(flat)
  local found = {}
  for n = 1, #flat, 2 do found[flat[n]] = flat[n + 1] end
  return found
end

local stream = named(redis.call('XINFO', 'STREAM', key))
local first = stream['first-entry'] and stream['first-entry'][1] or ''
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local group = named(flat)
  if group.name == ARGV[3] then return {newest, first, 1, group['last-delivered-id']} end
end
if stream['entries-added'] ~= stream.length then return {newest, first, 1, ''} end
return {newest, first, first == '' and 2 or 0, ''}
