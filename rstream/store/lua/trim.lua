#!lua flags=allow-oom
-- Trim one shard as its stream's retention asks, and no further than all groups have settled it: an entry that is
-- pending, or that a group has yet to read, stays, with all behind it. Groups that may lose entries do not count for
-- that; what they lose is written down, to the entry.
--
-- What a worker has in hand it may end: that is lost only where it comes back and is not found any more (see
-- recover.lua). What nobody has in hand is settled here.
--
-- KEYS[1] S        stream; also S:parked:<group>:<key>, the zset of each key in S:parked:<group>
-- KEYS[2] S:size   hash, see limits.lua
-- KEYS[3] S:marks  zset
-- KEYS[4] S:lost   hash: group -> what it lost, see lose.lua
-- KEYS[5...]       per group that may lose: S:retry:<group> (zset), S:parked:<group> (set), S:memo:<group>: (with an id
--                  behind it, a hash); then S:alive:<group>:<worker> (string) of each worker that is taken for dead
-- ARGV[1] minid    what is older goes, "" = no such limit
-- ARGV[2] maxlen   entries that stay at most, "" = no limit
-- ARGV[3] maxbytes bytes, as they are counted, "" = no limit
-- ARGV[4] dry      1 = only look
-- ARGV[5] losers   msgpack array: {group, {worker, ...} taken for dead}, in the order of KEYS
-- returns {removed, id before which it was trimmed or "", group that stopped it or "", id it stopped at or "",
--         {{group, lost}, ...}, 1 where there is more to do}
-- cost    O(removed / listpack + groups · log pending), what is pending and lost copied inside the server; by number of
--         entries, O(removed). At most STEP entries, STEP_BYTES where some are lost, or WALK, WALK_BYTES where they have
--         to be gone through
-- include: padded
-- include: floors
-- include: base
-- include: lose
local key, size, marks, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local losers, PAGE = cmsgpack.unpack(ARGV[5]), 500
local STEP, STEP_BYTES, WALK, WALK_BYTES = 50000, 32 * 1024 * 1024, 5000, 8 * 1024 * 1024
local more = 0
if redis.call('EXISTS', key) == 0 then return {0, '', '', '', {}, 0} end

local function less(one, other) return padded(one) < padded(other) end

local function wanted()
  local target = ARGV[1] ~= '' and ARGV[1] or nil
  local function take(id) if not target or less(target, id) then target = id end end
  local over = ARGV[2] ~= '' and redis.call('XLEN', key) - tonumber(ARGV[2]) or 0
  if over > 0 then
    local id, seen = behind_first(key, math.min(over, WALK), WALK_BYTES)
    if seen < over then more = 1 end
    take(id)
  end
  local total = ARGV[3] ~= '' and tonumber(redis.call('HGET', size, 'total'))
  local begun = total and base(marks, first_of(key))
  if begun and total - begun > tonumber(ARGV[3]) then take(behind(marks, total - tonumber(ARGV[3]))) end
  return target
end

local target, stopped, stop = wanted(), '', ''
local first = first_of(key)
if not target or not first or not less(first, target) then return {0, '', '', '', {}, 0} end

local losing, at = {}, 5
for _, loser in ipairs(losers) do
  losing[loser[1]] = {retries = KEYS[at], parked = KEYS[at + 1], memo = KEYS[at + 2], names = loser[2]}
  at = at + 3
end
for _, loser in ipairs(losers) do
  local alive = {}
  for n in ipairs(loser[2]) do alive[n] = KEYS[at + n - 1] end
  losing[loser[1]].alive, at = alive, at + #loser[2]
end

local all = floors(key)
for _, group in ipairs(all) do
  if not losing[group[1]] and less(group[2], target) then target, stopped, stop = group[2], group[1], group[2] end
end
if stopped ~= '' then more = 0 end
if ARGV[4] == '1' or not less(first, target) then return {0, target, stopped, stop, {}, 0} end

local function settle_base()
  local begun = base(marks, first_of(key)) or tonumber(redis.call('HGET', size, 'total') or '')
  if begun then redis.call('HSET', size, 'base', string.format('%.0f', begun)) end
end

local losses = false
for _, group in ipairs(all) do losses = losses or less(group[2], target) end
if not losses then
  local gone = redis.call('XTRIM', key, 'MINID', '~', target, 'LIMIT', STEP)
  if gone > STEP / 2 then
    more = 1
  else
    gone = gone + redis.call('XTRIM', key, 'MINID', target)
  end
  settle_base()
  return {gone, target, stopped, stop, {}, more}
end

-- What is lost is cut off at an id that is known, some of it at a time.
local counted = redis.call('HGET', size, 'total') and base(marks, first)
local far = counted and behind(marks, counted + STEP_BYTES) or behind_first(key, WALK, WALK_BYTES)
if less(far, target) then target, more = far, 1 end

-- What is pending for nobody who is at work.

local function take_from_aside(parked, id, entry)
  for n = 1, entry and #entry[2] or 0, 2 do
    if entry[2][n] == 'k' then
      local aside = parked .. ':' .. entry[2][n + 1]
      redis.call('ZREM', aside, padded(id), padded(id) .. '!')
      if redis.call('EXISTS', aside) == 0 then redis.call('SREM', parked, entry[2][n + 1]) end
    end
  end
end

local function idle_consumers(group)
  local found = {'~retry', '~released', '~again', '~parked'}
  for n, name in ipairs(group.names) do
    if redis.call('EXISTS', group.alive[n]) == 0 then found[#found + 1] = name end
  end
  return found
end

-- Of very many a call settles a page, and trims no further.
for name, group in pairs(losing) do
  for _, consumer in ipairs(idle_consumers(group)) do
    local page = redis.pcall('XPENDING', key, name, '-', '(' .. target, PAGE, consumer)
    if #page == PAGE then
      target, more = after(page[PAGE][1]), 1
    end
  end
end

local function adjacent(one, other) -- whether both are there, and nothing between
  return #redis.call('XRANGE', key, one, other, 'COUNT', 3) == 2
end

local function lose_pending(name, group)
  local ids, holder = {}, {}
  for _, consumer in ipairs(idle_consumers(group)) do
    for _, pending in ipairs(redis.call('XPENDING', key, name, '-', '(' .. target, PAGE, consumer)) do
      ids[#ids + 1] = pending[1]
      holder[pending[1]] = consumer
    end
  end
  table.sort(ids, less)
  local ranges = {}
  for _, id in ipairs(ids) do
    local last = ranges[#ranges]
    if holder[id] == '~parked' then
      take_from_aside(group.parked, id, redis.call('XRANGE', key, id, id)[1])
    elseif holder[id] == '~retry' then
      redis.call('ZREM', group.retries, id)
    end
    redis.call('XACK', key, name, id)
    redis.call('UNLINK', group.memo .. id)
    if last and adjacent(last[2], id) then
      last[2], last[3] = id, last[3] + 1
    else
      ranges[#ranges + 1] = {id, id, 1}
    end
  end
  return ranges
end

-- Segment by segment: XTRIM tells how many entries went that a group had yet to read.

local behind_groups, removed = {}, 0
local function cut(upto)
  local count = redis.call('XTRIM', key, 'MINID', upto)
  removed = removed + count
  for _, group in ipairs(behind_groups) do group.unread = group.unread + count end
end

local suffering = {}
for _, group in ipairs(all) do
  local name, floor, last = group[1], group[2], group[4]
  if losing[name] and less(floor, target) then
    local found = {name = name, start = after(last), unread = 0, ranges = lose_pending(name, losing[name])}
    suffering[#suffering + 1] = found
    local next = less(found.start, target) and redis.call('XRANGE', key, found.start, '(' .. target, 'COUNT', 1)[1]
    if next then found.from = next[1] end
  end
end
table.sort(suffering, function(one, other) return less(one.start, other.start) end)
local final = redis.call('XREVRANGE', key, '(' .. target, '-', 'COUNT', 1)[1]

-- Whether the unread ones go on where the pending ones end has to be seen before they are gone.
for _, group in ipairs(suffering) do
  local last = group.ranges[#group.ranges]
  group.joins = group.from and last and adjacent(last[2], group.from)
end
for _, group in ipairs(suffering) do
  if group.from then
    cut(group.start)
    behind_groups[#behind_groups + 1] = group
  end
end
cut(target)

local now_first, told = first_of(key) or '', {}
for _, group in ipairs(suffering) do
  local ranges, count = group.ranges, 0
  if group.unread > 0 then
    local last = ranges[#ranges]
    if group.joins then
      last[2], last[3] = final[1], last[3] + group.unread
    else
      ranges[#ranges + 1] = {group.from, final[1], group.unread}
    end
  end
  for _, range in ipairs(ranges) do count = count + range[3] end
  if count > 0 then
    lose(record, group.name, ranges, final and ranges[#ranges][2] == final[1] and now_first or '')
    told[#told + 1] = {group.name, count}
  end
end
settle_base()
return {removed, target, stopped, stop, told, more}
