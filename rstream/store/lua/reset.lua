#!lua flags=allow-oom
-- Have a group read one shard from a position on, and settle what is pending there without running it: what lies up to
-- the position is done, what lies behind it comes back by reading. For a few pending entries one call does it all.
--
-- Of many, each call settles a range, and the ranges come from the newest to the oldest: what a call takes out of the
-- pending it lets the group read again itself, by moving it to just before. So whoever dies between two calls leaves
-- a group that has lost nothing and runs nothing twice, only one that is not reset all the way.
--
-- Of an ordered group no worker owns the shard meanwhile, and who does afterwards learns anew what is pending.
--
-- KEYS[1] S                stream; the group is made where it is missing, with its stream unless S:sealed says that
--                          this was removed
-- KEYS[2] S:retry:<group>  zset: id -> due
-- KEYS[3] S:parked:<group>  set of keys; with :<key> behind it, the zset of the ids that are put aside of it
-- KEYS[4] S:owner:<group>  string
-- KEYS[5] S:epoch:<group>  string
-- KEYS[6] S:memo:<group>:  with an id behind it, the hash of that delivery's checkpoint and steps
-- ARGV[1] group
-- ARGV[2] forced    1 = also while workers of the group are alive
-- ARGV[3] token     by which the shard is held
-- ARGV[4] after     "(id" or "-": the range of pending entries that this call settles
-- ARGV[5] upto      id or "+"
-- ARGV[6] floor     id: the position that is asked for, or the id of `after` where that is higher; "" = the group has
--                   been moved already
-- ARGV[7] limit     entries; where the range has so many, it has grown, and nothing is settled
-- ARGV[8] budget    bytes of entries that are looked at, after which the rest of the range is left
-- returns {done, settled, the next id to settle or "" where the range is done, id that was moved to or ""},
--         {living, name, ...} (nothing was changed) or {grown}
-- cost    O(range · log pending), each entry that is put aside copied inside the server
-- include: padded
-- include: living
-- include: hold
local key, retries, parked, group, floor = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[6]
local limit, budget = tonumber(ARGV[7]), tonumber(ARGV[8])

if ARGV[2] ~= '1' then
  local names = living(key, group)
  if names[1] then return {'living', unpack(names)} end
end
hold(KEYS[4], KEYS[5], ARGV[3])

local function take_from_aside(id)
  local entry = redis.call('XRANGE', key, id, id)[1]
  for n = 1, entry and #entry[2] or 0, 2 do
    local name, value = entry[2][n], entry[2][n + 1]
    budget = budget - #name - #value
    if name == 'k' then
      local aside = parked .. ':' .. value
      redis.call('ZREM', aside, padded(id), padded(id) .. '!')
      if redis.call('EXISTS', aside) == 0 then redis.call('SREM', parked, value) end
    end
  end
end

local function move_to(id)
  local moved = redis.pcall('XGROUP', 'SETID', key, group, id)
  local removed = redis.call('EXISTS', key) == 0 and redis.call('EXISTS', key .. ':sealed') == 1
  if moved.err and not removed then redis.call('XGROUP', 'CREATE', key, group, id, 'MKSTREAM') end
end

local range = redis.pcall('XPENDING', key, group, ARGV[4], ARGV[5], limit)
if range.err then range = {} end -- the group, or the whole shard, is missing
if #range == limit then return {'grown'} end

local settled, memos, left = {}, {}, ''
for n = #range, 1, -1 do
  local id, holder = range[n][1], range[n][2]
  if budget <= 0 then
    left = id
    break
  end
  if holder == '~parked' then take_from_aside(id) end
  settled[#settled + 1] = id
  memos[#memos + 1] = KEYS[6] .. id
end
if settled[1] then
  redis.call('XACK', key, group, unpack(settled))
  redis.call('ZREM', retries, unpack(settled))
  redis.call('UNLINK', unpack(memos))
end

if floor ~= '' then
  if left ~= '' and padded(left) > padded(floor) then floor = left end
  move_to(floor)
end
if redis.call('XPENDING', key, group)[1] == 0 then -- then these can only hold what is not pending any more
  for _, each in ipairs(redis.call('SMEMBERS', parked)) do redis.call('UNLINK', parked .. ':' .. each) end
  redis.call('UNLINK', retries, parked)
end
return {'done', #settled, left, floor}
