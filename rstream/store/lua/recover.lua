#!lua flags=allow-oom
-- Take over what nobody alive holds: due retries, released deliveries, deliveries of silent workers.
-- An entry pending for a worker that is alive is nobody else's business. A worker claims from silent ones only
-- where it has itself been alive, without a gap, for a whole lease: so after a pause of Redis, a failover or a
-- jump of its clock everyone gets a lease's time to say that they live. This is judged here, not by the caller:
-- a call may have waited in a socket while Redis stood still.
--
-- Of an ordered group only the owner of a shard claims there.
--
-- Only those are judged whose alive keys are given: while a slot of a cluster is being moved, a key that Redis was not
-- told of may not have come yet, and whoever lives would look dead. For those that are given Redis then waits.
--
-- KEYS    per shard: S (stream), S:retry:<group> (zset id -> due), S:owner:<group> (string), S:parked:<group> (set; with
--         ":<key>" behind it, the zset of each), S:lost (hash, see lose.lua), S:done (hash, see add.lua); and
--         with a lease S:alive:<group>:<name> (string) of the worker itself, and of the others that are judged
-- ARGV[1] group
-- ARGV[2] worker  the one that takes over
-- ARGV[3] limit   entries in all
-- ARGV[4] lease   ms; 0 = do not look for silent workers
-- ARGV[5] budget  bytes of payload after which no more is claimed
-- ARGV[6] doubt   deliveries from which an entry of a silent worker is suspected to have killed it
-- ARGV[7] suspects  how many of those may be claimed: they run one at a time, and the others are for other workers
-- ARGV[8] end     deliveries from which it is not run any more: these are no suspects
-- ARGV[9...]      per shard: the worker|epoch by which it is owned, "" where the group is not ordered; and how many
--                 alive keys are given
-- returns {claimed, lost, next, left}: claimed = {{shard, id, deliveries, from, fields}, ...};
--         lost = {{shard, id}, ...}: pending, but no longer in the stream, and now acked;
--         next = ms until the next retry is due, -1 = none waits; left = 1 where suspects were left to others
-- cost    O(shards + claimed), with a lease O(shards · consumers + claimed); at most PAGES · PAGE suspects are passed
--         over on the way
-- include: padded
-- include: lose
-- include: add
local group, worker, left = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease, budget = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local doubt, suspects, used_up = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local claimed, lost, next_due, passed_over = {}, {}, -1, 0
local PAGE, PAGES = 100, 10

-- XCLAIM with JUSTID leaves the delivery count alone, and answers nothing for an entry that was trimmed.
local function claim(shard, key, pending)
  local id = pending[1]
  local entry = redis.call('XRANGE', key, id, id)[1]
  if entry then
    redis.call('XCLAIM', key, group, worker, 0, id, 'JUSTID')
    claimed[#claimed + 1] = {shard, id, pending[4], pending[2], entry[2]}
    left, budget = left - 1, budget - #entry[2][2]
    if budget <= 0 then left = 0 end
  else
    redis.call('XACK', key, group, id)
    lost[#lost + 1] = {shard, id}
  end
end

local function due_retries(shard, key, retries)
  if left <= 0 then return end
  for _, id in ipairs(redis.call('ZRANGE', retries, '-inf', now, 'BYSCORE', 'LIMIT', 0, left)) do
    if left <= 0 then return end
    redis.call('ZREM', retries, id)
    local pending = redis.pcall('XPENDING', key, group, id, id, 1)[1]
    if pending and pending[2] == '~retry' then claim(shard, key, pending) end
  end
end

-- False where it has to be left to another worker.
local function acceptable(pending, suspicious)
  if not suspicious or pending[4] < doubt or pending[4] >= used_up then return true end
  suspects = suspects - 1
  if suspects < 0 then passed_over = 1 end
  return suspects >= 0
end

local function held_by(shard, key, name, suspicious, retries)
  local from = '-'
  for _ = 1, PAGES do
    if left <= 0 then return end
    local held = redis.pcall('XPENDING', key, group, from, '+', PAGE, name)
    if held.err then return end -- no such group: the fetch finds that out and heals it
    for _, pending in ipairs(held) do
      if left <= 0 then return end
      if not (retries and redis.call('ZSCORE', retries, pending[1])) and acceptable(pending, suspicious) then
        claim(shard, key, pending)
      end
    end
    if #held < PAGE then return end
    from = '(' .. held[#held][1]
  end
end

-- alive: by name, the keys of those that are judged.
local function silent_workers(shard, key, retries, alive)
  local since = tonumber(redis.call('GET', alive[worker]))
  local patient = since and now - since >= lease
  local all = redis.pcall('XINFO', 'CONSUMERS', key, group)
  if all.err then return end
  for _, flat in ipairs(all) do
    local info = {}
    for n = 1, #flat, 2 do info[flat[n]] = flat[n + 1] end
    local name, holds = info.name, info.pending
    if name == '~retry' then
      -- a retry whose due time was lost (a restored backup, say) would wait for ever
      if holds > redis.call('ZCARD', retries) then held_by(shard, key, name, false, retries) end
    elseif alive[name] and name ~= worker and patient and redis.call('EXISTS', alive[name]) == 0 then
      if holds == 0 then
        redis.call('XGROUP', 'DELCONSUMER', key, group, name)
      else
        held_by(shard, key, name, true)
      end
    end
  end
end

-- The group was ordered before: what was put aside then has no turn to wait for any more. What is left of it is still
-- found by its keys where the group becomes ordered again.
local function put_aside(shard, key, parked)
  held_by(shard, key, '~parked', false)
  if redis.call('EXISTS', parked) == 0 then return end
  local waiting = redis.pcall('XPENDING', key, group, '-', '+', 1, '~parked')
  if waiting.err or waiting[1] then return end
  for _, each in ipairs(redis.call('SMEMBERS', parked)) do redis.call('UNLINK', parked .. ':' .. each) end
  redis.call('UNLINK', parked)
end

-- Their alive keys, by name.
local function judged(key, from, to)
  local alive, prefix = {}, #key + #':alive:' + #group + #':'
  for n = from, to do alive[string.sub(KEYS[n], prefix + 1)] = KEYS[n] end
  return alive
end

local function write_down(shard, record)
  local ranges = {}
  for _, each in ipairs(lost) do
    if each[1] == shard then ranges[#ranges + 1] = {each[2], each[2], 1} end
  end
  if ranges[1] then lose(record, group, ranges, '') end
end

-- What came after so many from workers: what pseudo-consumers had, nobody died of.
local function count_taken(before, record)
  local taken = 0
  for n = before + 1, #claimed do
    if string.sub(claimed[n][4], 1, 1) ~= '~' then taken = taken + 1 end
  end
  if taken > 0 then add(record, group, {redelivered = taken}) end
end

local at, shard = 1, 0
while at <= #KEYS do
  local key, retries, owner, parked = KEYS[at], KEYS[at + 1], KEYS[at + 2], KEYS[at + 3]
  local token, others = ARGV[9 + 2 * shard], tonumber(ARGV[10 + 2 * shard])
  if token == '' or redis.call('GET', owner) == token then
    due_retries(shard, key, retries)
    held_by(shard, key, '~released', true)
    held_by(shard, key, '~again', false)
    if token == '' then put_aside(shard, key, parked) end
    if lease > 0 then
      local before = #claimed
      silent_workers(shard, key, retries, judged(key, at + 6, at + 5 + others))
      count_taken(before, KEYS[at + 5])
    end
    write_down(shard, KEYS[at + 4])
    local first = redis.call('ZRANGE', retries, 0, 0, 'WITHSCORES')
    if first[2] then
      local wait = math.max(0, tonumber(first[2]) - now)
      if next_due < 0 or wait < next_due then next_due = wait end
    end
  end
  at, shard = at + 6 + others, shard + 1
end
return {claimed, lost, next_due, passed_over}
