#!lua flags=allow-oom
-- Bring back the first entries that were put aside of one key, for the owner of the shard (the fence).
--
-- KEYS[1] S                       stream
-- KEYS[2] S:owner:<group>         string
-- KEYS[3] S:parked:<group>        set: keys of which entries are put aside
-- KEYS[4] S:parked:<group>:<key>  zset: ids, padded so that they sort, with "!" behind those that a dead worker may have
--                                 been killed by
-- KEYS[5] S:lost                  hash: group -> what it lost, see lose.lua
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] worker|epoch  by which the shard is owned
-- ARGV[4] key
-- ARGV[5] limit   entries
-- ARGV[6] budget  bytes of payload after which no more is brought
-- returns {claimed, lost, first id that is still put aside or ""}; claimed = {{id, deliveries, fields, ~parked or ~suspect}, ...},
--         lost = {id, ...}: no longer in the stream, and now acked; false where the shard is not owned by that
-- cost    O(limit · log pending)
-- include: padded
-- include: lose
local key, group, budget, claimed, lost = KEYS[1], ARGV[1], tonumber(ARGV[6]), {}, {}
if redis.call('GET', KEYS[2]) ~= ARGV[3] then return false end
for _, member in ipairs(redis.call('ZRANGE', KEYS[4], 0, ARGV[5] - 1)) do
  if budget <= 0 then break end
  local id = plain(member)
  redis.call('ZREM', KEYS[4], member)
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  if pending and pending[2] == '~parked' then
    local entry = redis.call('XRANGE', key, id, id)[1]
    if entry then
      redis.call('XCLAIM', key, group, ARGV[2], 0, id, 'JUSTID')
      claimed[#claimed + 1] = {id, pending[4], entry[2], string.sub(member, -1) == '!' and '~suspect' or '~parked'}
      budget = budget - #entry[2][2]
    else
      redis.call('XACK', key, group, id)
      lost[#lost + 1] = id
    end
  end
end
local ranges = {}
for n, id in ipairs(lost) do ranges[n] = {id, id, 1} end
if ranges[1] then lose(KEYS[5], group, ranges, '') end
local first = redis.call('ZRANGE', KEYS[4], 0, 0)[1]
if not first then redis.call('SREM', KEYS[3], ARGV[4]) end
return {claimed, lost, first and plain(first) or ''}
