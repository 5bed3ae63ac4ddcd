#!lua flags=no-writes
-- What is pending of a group in one shard, the oldest first: who has it, since when, and what is known of it. A page ends
-- after a number of those that match, of entries looked at, or of bytes copied to look at them.
--
-- KEYS[1] S  stream; also S:retry:<group>, S:memo:<group>:<id> and S:alive:<group>:<worker>
-- ARGV[1] group
-- ARGV[2] start   id, or "(id" to page on
-- ARGV[3] end     id
-- ARGV[4] limit   matches
-- ARGV[5] look    entries looked at
-- ARGV[6] budget  bytes of entries copied
-- ARGV[7] holder  only what this one has, a worker or a pseudo-consumer; "" = anybody
-- ARGV[8] key     only entries of this key; "" = any
-- ARGV[9] held    ms for which it has had them at least
-- ARGV[10] most   bytes of a checkpoint that is brought
-- returns {now (ms), {{key or false, payload bytes or -1 where it is not stored any more, and all that holding.lua tells},
--         ...}, last id that was looked at, or "" at the end}; nothing where there is no such group
-- cost    O(log pending + look), each entry copied inside the server
-- include: holding
local stream, group, wanted = KEYS[1], ARGV[1], ARGV[8]
local limit, look, budget = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local held, most = tonumber(ARGV[9]), tonumber(ARGV[10])
local time = redis.call('TIME')
local now, found = time[1] * 1000 + math.floor(time[2] / 1000), {}

-- (key or false, bytes of its payload or -1)
local function about(id)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if not entry then return false, -1 end
  local key, size = false, 0
  for n = 1, #entry[2], 2 do
    local name, value = entry[2][n], entry[2][n + 1]
    budget = budget - #name - #value
    if name == 'k' then key = value end
    if name == 'e' then size = #value end
  end
  return key, size
end

local call = {'XPENDING', stream, group, ARGV[2], ARGV[3], look}
if ARGV[7] ~= '' then call[7] = ARGV[7] end
local page = redis.pcall(unpack(call))
if page.err then
  if string.find(page.err, 'NOGROUP', 1, true) then return {now, {}, ''} end
  return page
end
for n, pending in ipairs(page) do
  if pending[3] >= held then
    local key, size = about(pending[1])
    if wanted == '' or key == wanted then
      found[#found + 1] = {key, size, unpack(holding(stream, group, pending, most))}
    end
  end
  if #found >= limit or budget <= 0 then
    return {now, found, (n < #page or #page == look) and pending[1] or ''}
  end
end
return {now, found, #page == look and page[#page][1] or ''}
