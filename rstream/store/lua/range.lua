#!lua flags=no-writes
-- Read a page of one shard, bounded in entries and in bytes.
--
-- KEYS[1] S       stream
-- ARGV[1] start   id, or "(id" to page on
-- ARGV[2] end     id
-- ARGV[3] limit   entries
-- ARGV[4] budget  bytes of payload after which the page ends
-- ARGV[5] first   1 = tell also the first id of the shard, and the one that the next page begins with: who comes for
--                 that page, and finds that the shard begins later, was overtaken by a trim
-- returns         {entries as XRANGE gives them, 1 if the range may hold more}, and with `first` the two ids, "" = none
-- cost            O(entries)
local STEP = 64 -- XRANGE copies entries before anybody knows their size
local start, left, budget, found = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), {}
local first
if ARGV[5] == '1' then
  first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  first = first and first[1] or ''
end
while left > 0 and budget > 0 do
  local step = math.min(left, STEP)
  local entries = redis.call('XRANGE', KEYS[1], start, ARGV[2], 'COUNT', step)
  for _, entry in ipairs(entries) do
    found[#found + 1] = entry
    budget = budget - #entry[2][2]
  end
  if #entries < step then return {found, 0, first, ''} end
  start, left = '(' .. entries[#entries][1], left - step
end
local following = first and redis.call('XRANGE', KEYS[1], start, ARGV[2], 'COUNT', 1)[1]
if first and not following then return {found, 0, first, ''} end
return {found, 1, first, following and following[1]}
