#!lua flags=no-writes
-- Count entries of one shard and the bytes of their payloads, which are left where they are. A page ends after a number of
-- entries, or of bytes copied to count them.
--
-- KEYS[1] S       stream
-- ARGV[1] start   id, or "(id" to page on
-- ARGV[2] end     id
-- ARGV[3] key     only its entries; "" = all
-- ARGV[4] look    entries to look at
-- ARGV[5] budget  bytes
-- returns {how many, bytes of payload, first id or "", last id or "", the id to go on after, or "" at the end}
-- cost    O(entries), each copied inside the server
local STEP = 64 -- XRANGE copies entries before anybody knows their size
local start, key, left, budget = ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local count, bytes, first, last = 0, 0, '', ''

local function take(id, flat)
  local fields = {}
  for n = 1, #flat, 2 do
    fields[flat[n]] = flat[n + 1]
    budget = budget - #flat[n + 1]
  end
  if key ~= '' and fields.k ~= key then return end
  count, bytes, last = count + 1, bytes + #(fields.e or ''), id
  if first == '' then first = id end
end

while left > 0 and budget > 0 do
  local entries = redis.call('XRANGE', KEYS[1], start, ARGV[2], 'COUNT', STEP)
  for _, entry in ipairs(entries) do take(entry[1], entry[2]) end
  if #entries < STEP then return {count, bytes, first, last, ''} end
  start, left = '(' .. entries[#entries][1], left - STEP
end
return {count, bytes, first, last, string.sub(start, 2)}
