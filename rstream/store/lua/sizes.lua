#!lua flags=no-writes
-- How large the newest entries of a stream are: of a shard, or of dead letters. Payloads are left where they are.
--
-- KEYS[1] stream
-- ARGV[1] count  entries to look at, at most
-- ARGV[2] bytes  of them, at most (or one entry, however large)
-- returns {entries there are, id of the newest or "", entries looked at, their bytes, bytes of the largest, its id or ""}
-- cost    O(entries looked at), copied inside the server
local STEP = 16
local count, left = tonumber(ARGV[1]), tonumber(ARGV[2])
local looked, total, largest, which, newest, upto = 0, 0, 0, '', '', '+'
while count > looked and left > 0 do
  local step = math.min(looked == 0 and 1 or STEP, count - looked)
  local page = redis.call('XREVRANGE', KEYS[1], upto, '-', 'COUNT', step)
  for _, entry in ipairs(page) do
    local size = 0
    for _, part in ipairs(entry[2]) do size = size + #part end
    if newest == '' then newest = entry[1] end
    if size > largest then largest, which = size, entry[1] end
    looked, total, left, upto = looked + 1, total + size, left - size, '(' .. entry[1]
  end
  if #page < step then break end
end
return {redis.call('XLEN', KEYS[1]), newest, looked, total, largest, which}
