#!lua flags=no-writes
-- Find what the entries of a stream refer to in a blob store.
--
-- KEYS[1] a stream: a shard, or the dead letters of a group there
-- ARGV[1] start   id, or "(id" to go on after it
-- ARGV[2] limit   entries to look at
-- ARGV[3] budget  bytes of values after which the call ends
-- returns         {references of 44 bytes each, the id to go on after, or "" where there is no more}
-- cost            O(bytes that are looked at)
local HEAD, SIZE = '\199\44\66', 44 -- how msgpack begins a reference
local STEP = 16 -- XRANGE copies entries before anybody knows their size
local start, left, budget, found = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), {}

local function look(value)
  budget = budget - #value
  local at = string.find(value, HEAD, 1, true)
  while at do
    local reference = string.sub(value, at + 3, at + 2 + SIZE)
    if #reference == SIZE then found[#found + 1] = reference end
    at = string.find(value, HEAD, at + 1, true)
  end
end

while left > 0 and budget > 0 do
  local entries = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', STEP)
  for _, entry in ipairs(entries) do
    for n = 2, #entry[2], 2 do look(entry[2][n]) end
  end
  if #entries < STEP then return {found, ''} end
  start, left = '(' .. entries[#entries][1], left - STEP
end
return {found, string.sub(start, 2)}
