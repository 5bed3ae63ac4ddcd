#!lua flags=allow-oom
-- What is pending for this worker in one shard: after a read whose answer never came, or a lost lease.
--
-- KEYS[1] S       stream
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] start   id, or "(id" to page on
-- ARGV[4] limit
-- ARGV[5] budget  bytes of payload after which the page ends
-- returns         {{id, deliveries, fields or false where it was trimmed}, ...}
-- cost            O(log pending + limit)
local found, budget = {}, tonumber(ARGV[5])
if redis.call('EXISTS', KEYS[1]) == 0 then return found end -- of an older generation, and removed
for _, pending in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], '+', ARGV[4], ARGV[2])) do
  local entry = redis.call('XRANGE', KEYS[1], pending[1], pending[1])[1]
  found[#found + 1] = {pending[1], pending[4], entry and entry[2] or false}
  budget = budget - (entry and #entry[2][2] or 0)
  if budget <= 0 then break end
end
return found
