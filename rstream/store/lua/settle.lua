#!lua flags=allow-oom
-- End deliveries of one shard, each only if it still belongs to this worker and attempt (the fence).
--
-- KEYS[1] S                stream
-- KEYS[2] S:retry:<group>  zset: id -> due
-- KEYS[3] S:dead:<group>   stream: dead letters
-- KEYS[4] S:memo:<group>:  with an id behind it, the hash of that delivery's checkpoint and steps
-- KEYS[5] S:parked:<group>  set of keys
-- KEYS[6] S:lost           hash: group -> what it lost, see lose.lua
-- KEYS[7] S:done           hash: <kind>:<group> -> how many, see add.lua
-- KEYS[8...] S:parked:<group>:<key>  per key of what is parked, zset: the ids that are put aside of it
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] outcomes  msgpack array of {id, attempt, kind, a, b, c}:
--           ack      a = marker, b = ttl in ms -> where a marker is given, it is set to the id
--           expired, skipped  acked: too old to be started; or the double of what had succeeded
--           retry    a = delay in ms         -> pending for ~retry, due then; b = attempts begun, "" = this one, too
--           dead     a = reason, b = error, c = traceback -> a dead letter, and acked
--           lost     the entry is not there any more -> written down as lost, and acked
--           release  a = attempts begun, b = ~released or ~again -> pending for that one: nothing is burnt
--           park     a = attempts begun, b = which of KEYS[8...], c = "!" for one that a dead worker may have been
--                    killed by, else "" -> pending for ~parked, until its key's turn: see unpark.lua
-- ARGV[4] again  1 = they were sent before, and may have been done: what looks so is not counted as refused
-- returns  {{0-based index, owner or "", deliveries}, ...} of the refused: nothing was changed for them; the owner is
--          ~lost where an entry that was to stay pending is not stored any more, which is written down
-- cost     O(outcomes · log pending)
-- include: padded
-- include: lose
-- include: add
local key, retries, graveyard, group, worker = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2]
local now
local acks, lost, refused, done = {}, {}, {}, {}

local function clock()
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return now
end

local function count(kind) done[kind] = (done[kind] or 0) + 1 end

local STAYS = {retry = true, release = true, park = true} -- pending, for a pseudo-consumer

local function looks_done(kind, pending)
  if ARGV[4] == '0' then return false end
  return STAYS[kind] and pending and string.sub(pending[2], 1, 1) == '~' or not (STAYS[kind] or pending)
end

-- False where the entry is not stored any more: XCLAIM then drops it from what is pending, and it is lost.
local function hand_to(n, name, id, count)
  if redis.call('XCLAIM', key, group, name, 0, id, 'RETRYCOUNT', count, 'JUSTID')[1] then return true end
  lost[#lost + 1] = {id, id, 1}
  acks[#acks + 1] = id
  refused[#refused + 1] = {n - 1, '~lost', count}
  return false
end

local PARTS = 100 -- fields and values copied of an entry: rstream's own have at most 8, and unpack() has a limit

local function bury(id, attempt, reason, cause, traceback)
  local letter = {
    'id', id, 'reason', reason, 'error', cause, 'traceback', traceback, 'attempts', attempt, 'worker', worker,
  }
  local entry = redis.call('XRANGE', key, id, id)[1]
  local parts = entry and entry[2] or {}
  for n = 1, math.min(#parts, PARTS) do letter[#letter + 1] = parts[n] end
  redis.call('XADD', graveyard, '*', unpack(letter))
end

for n, outcome in ipairs(cmsgpack.unpack(ARGV[3])) do
  local id, attempt, kind = outcome[1], outcome[2], outcome[3]
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  if not pending or pending[2] ~= worker or pending[4] ~= attempt then
    refused[#refused + 1] = {n - 1, pending and pending[2] or '', pending and pending[4] or 0}
    if not looks_done(kind, pending) then count('fenced') end
  elseif kind == 'ack' then
    acks[#acks + 1] = id
    count('acked')
    if outcome[4] ~= '' then redis.call('SET', key .. ':once:' .. group .. ':' .. outcome[4], id, 'PX', outcome[5]) end
  elseif kind == 'retry' then
    if hand_to(n, '~retry', id, outcome[5] == '' and attempt or outcome[5]) then
      redis.call('ZADD', retries, clock() + outcome[4], id)
      count('retried')
    end
  elseif kind == 'dead' then
    bury(id, attempt, outcome[4], outcome[5], outcome[6])
    acks[#acks + 1] = id
    count('dead:' .. outcome[4])
  elseif kind == 'expired' or kind == 'skipped' then
    acks[#acks + 1] = id
    count(kind)
  elseif kind == 'lost' then
    lost[#lost + 1] = {id, id, 1}
    acks[#acks + 1] = id
  elseif kind == 'park' then
    if hand_to(n, '~parked', id, outcome[4]) then
      local aside = KEYS[7 + outcome[5]]
      redis.call('SADD', KEYS[5], string.sub(aside, #KEYS[5] + 2))
      redis.call('ZADD', aside, 0, padded(id) .. outcome[6])
    end
  else
    hand_to(n, outcome[5], id, outcome[4])
  end
end

if lost[1] then lose(KEYS[6], group, lost, '') end
add(KEYS[7], group, done)
-- unpack() is bounded by Lua's C stack
for from = 1, #acks, 1000 do
  local to, memos = math.min(from + 999, #acks), {}
  for n = from, to do memos[#memos + 1] = KEYS[4] .. acks[n] end
  redis.call('XACK', key, group, unpack(acks, from, to))
  redis.call('UNLINK', unpack(memos))
end
return refused
