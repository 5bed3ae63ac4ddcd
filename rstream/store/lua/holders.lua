#!lua flags=no-writes
-- For whom entries are pending.
--
-- KEYS[1] S       stream
-- ARGV[1] group
-- ARGV[2...]      ids
-- returns         a name for each, "" = it is settled
-- cost            O(ids · log pending)
local holders = {}
local exists = redis.call('EXISTS', KEYS[1]) == 1 -- else of an older generation, and removed
for n = 2, #ARGV do
  local pending = exists and redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[n], ARGV[n], 1)[1]
  holders[n - 1] = pending and pending[2] or ''
end
return holders
