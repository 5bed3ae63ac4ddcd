#!lua flags=allow-oom
-- Settle what is pending of a group in one shard, whoever has it: it is acked and counted as cancelled, and what was kept for
-- it goes. Whoever runs it cannot settle it any more: of that and this, exactly one is done.
--
-- KEYS[1] S                  stream
-- KEYS[2] S:retry:<group>    zset: id -> due
-- KEYS[3] S:memo:<group>:    with an id behind it, the hash of that delivery's checkpoint and steps
-- KEYS[4] S:done             hash, see add.lua
-- KEYS[5] S:parked:<group>   set of keys
-- KEYS[6...] S:parked:<group>:<key>  per key of what may be put aside, zset: ids (one that stays is passed over, see unpark.lua)
-- ARGV[1] group
-- ARGV[2...] ids
-- returns {verdict, holder or "", deliveries} of each:
--           cancelled  it was pending for that holder
--           settled    it is not pending: settled before, or passed over
--           unread     nobody was given it yet: nothing can be cancelled
--           gone       the group is not there, or its shard is not
-- cost    O(ids · log pending)
-- include: add
-- include: padded
-- include: position
local stream, group = KEYS[1], ARGV[1]
local cancelled, verdicts = 0, {}

local function bring_no_more(id)
  for n = 6, #KEYS do
    if redis.call('ZREM', KEYS[n], padded(id), padded(id) .. '!') > 0 and redis.call('EXISTS', KEYS[n]) == 0 then
      redis.call('SREM', KEYS[5], string.sub(KEYS[n], #KEYS[5] + 2))
    end
  end
end

local function cancel(id, read_up_to)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if not pending then return {padded(id) > read_up_to and 'unread' or 'settled', '', 0} end
  redis.call('XACK', stream, group, id)
  redis.call('ZREM', KEYS[2], id)
  redis.call('UNLINK', KEYS[3] .. id)
  if pending[2] == '~parked' then bring_no_more(id) end
  cancelled = cancelled + 1
  return {'cancelled', pending[2], pending[4]}
end

local read_up_to = position(stream, group)
for n = 2, #ARGV do
  verdicts[n - 1] = read_up_to and cancel(ARGV[n], read_up_to) or {'gone', '', 0}
end
if cancelled > 0 then add(KEYS[4], group, {cancelled = cancelled}) end
return verdicts
