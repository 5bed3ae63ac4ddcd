#!lua flags=no-writes
-- Count entries of one shard, payloads left where they are. A page ends after a number of entries, or of bytes copied
-- to count them; a range that holds everything is not gone through.
--
-- KEYS[1] S       stream
-- ARGV[1] after   id: what comes after it
-- ARGV[2] upto    id, this included
-- ARGV[3] look    entries
-- ARGV[4] budget  bytes
-- returns {how many, last id that was counted or "" at the end}
-- cost    O(entries), each copied inside the server
local key, after, upto = KEYS[1], ARGV[1], ARGV[2]
local look, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local STEP_MAX = 500
local seen, copied = 0, 0

local function nothing_beyond(id)
  local found = redis.pcall('XRANGE', key, '(' .. id, '+', 'COUNT', 1)
  return found.err or not found[1] -- after the last possible id comes nothing: there it answers an error
end

if not redis.call('XRANGE', key, '-', after, 'COUNT', 1)[1] and nothing_beyond(upto) then
  return {redis.call('XLEN', key), ''}
end

while seen < look and copied < budget do
  -- nobody knows the size of entries before they are copied: go by those before
  local step = seen == 0 and 4 or math.floor((budget - copied) / (copied / seen + 1))
  step = math.max(1, math.min(step, STEP_MAX, look - seen))
  local page = redis.pcall('XRANGE', key, '(' .. after, upto, 'COUNT', step)
  if page.err then return {seen, ''} end -- nothing can come after
  for _, entry in ipairs(page) do
    for _, part in ipairs(entry[2]) do copied = copied + #part end
  end
  seen = seen + #page
  if #page < step then return {seen, ''} end
  after = page[#page][1]
end
return {seen, after}
