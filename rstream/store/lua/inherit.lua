#!lua flags=no-writes
-- What is pending in a shard, for whom, and of which key: what a new owner has to know before it reads on.
-- What is put aside (~parked) is left out, see parked.lua.
--
-- KEYS[1] S       stream
-- ARGV[1] group
-- ARGV[2] start   id, or "(id" to page on
-- ARGV[3] limit   entries to look at
-- ARGV[4] budget  bytes of payload after which the page ends
-- returns {{{id, consumer, key or false}, ...}, last id that was looked at, or "" at the end}
-- cost    O(limit), each entry copied inside the server
local found, budget, last = {}, tonumber(ARGV[4]), ''
local page = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], '+', ARGV[3])
for n, pending in ipairs(page) do
  if pending[2] ~= '~parked' then
    local entry = redis.call('XRANGE', KEYS[1], pending[1], pending[1])[1]
    local key = false
    for at = 1, entry and #entry[2] or 0, 2 do
      if entry[2][at] == 'k' then key = entry[2][at + 1] end
    end
    found[#found + 1] = {pending[1], pending[2], key}
    budget = budget - (entry and #entry[2][2] or 0)
  end
  if budget <= 0 and n < #page then return {found, pending[1]} end
  if n == tonumber(ARGV[3]) then last = pending[1] end
end
return {found, last}
