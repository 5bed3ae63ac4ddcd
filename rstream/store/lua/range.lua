#!lua flags=no-writes
-- Read a page of one shard, bounded in entries and in bytes.
--
-- KEYS[1] S       stream
-- ARGV[1] start   id, or "(id" to page on
-- ARGV[2] end     id
-- ARGV[3] limit   entries
-- ARGV[4] budget  bytes of payload after which the page ends
-- returns         {entries as XRANGE gives them, 1 if the range may hold more}
-- cost            O(entries)
local STEP = 64 -- XRANGE copies entries before anybody knows their size
local start, left, budget, found = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), {}
while left > 0 and budget > 0 do
  local step = math.min(left, STEP)
  local entries = redis.call('XRANGE', KEYS[1], start, ARGV[2], 'COUNT', step)
  for _, entry in ipairs(entries) do
    found[#found + 1] = entry
    budget = budget - #entry[2][2]
  end
  if #entries < step then return {found, 0} end
  start, left = '(' .. entries[#entries][1], left - step
end
return {found, 1}
