#!lua flags=allow-oom
-- Take over what nobody alive holds: due retries, released deliveries, deliveries of silent workers.
-- An entry pending for a worker that is alive is nobody else's business. A worker claims from silent ones only
-- where it has itself been alive, without a gap, for a whole lease: so after a pause of Redis, a failover or a
-- jump of its clock everyone gets a lease's time to say that they live. This is judged here, not by the caller:
-- a call may have waited in a socket while Redis stood still.
--
-- KEYS    per shard: S (stream), S:retry:<group> (zset id -> due)
-- ARGV[1] group
-- ARGV[2] worker  the one that takes over
-- ARGV[3] limit   entries in all
-- ARGV[4] lease   ms; 0 = do not look for silent workers
-- ARGV[5] first   0-based shard to begin with
-- ARGV[6] budget  bytes of payload after which no more is claimed
-- returns {claimed, lost, next}: claimed = {{shard, id, deliveries, from, fields}, ...};
--         lost = {{shard, id}, ...}: pending, but no longer in the stream, and now acked;
--         next = ms until the next retry is due, -1 = none waits
-- cost    O(shards + claimed), with a lease O(shards · consumers + claimed)
local group, worker, left = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease, budget = tonumber(ARGV[4]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claimed, lost, next_due = {}, {}, -1

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

local function held_by(shard, key, name, retries)
  if left <= 0 then return end
  local held = redis.pcall('XPENDING', key, group, '-', '+', left, name)
  if held.err then return end -- no such group: the fetch finds that out and heals it
  for _, pending in ipairs(held) do
    if left <= 0 then return end
    if not retries or not redis.call('ZSCORE', retries, pending[1]) then claim(shard, key, pending) end
  end
end

local function alive_since(key, name)
  return tonumber(redis.call('GET', key .. ':alive:' .. group .. ':' .. name))
end

local function silent_workers(shard, key, retries)
  local since = alive_since(key, worker)
  local patient = since and now - since >= lease
  local all = redis.pcall('XINFO', 'CONSUMERS', key, group)
  if all.err then return end
  for _, flat in ipairs(all) do
    local info = {}
    for n = 1, #flat, 2 do info[flat[n]] = flat[n + 1] end
    local name, holds = info.name, info.pending
    if name == '~retry' then
      -- a retry whose due time was lost (a restored backup, say) would wait for ever
      if holds > redis.call('ZCARD', retries) then held_by(shard, key, name, retries) end
    elseif string.sub(name, 1, 1) ~= '~' and name ~= worker and patient and not alive_since(key, name) then
      if holds == 0 then
        redis.call('XGROUP', 'DELCONSUMER', key, group, name)
      else
        held_by(shard, key, name)
      end
    end
  end
end

local shards = #KEYS / 2
for n = 0, shards - 1 do
  local shard = (n + tonumber(ARGV[5])) % shards
  local key, retries = KEYS[2 * shard + 1], KEYS[2 * shard + 2]
  due_retries(shard, key, retries)
  held_by(shard, key, '~released')
  held_by(shard, key, '~again')
  if lease > 0 then silent_workers(shard, key, retries) end
  local first = redis.call('ZRANGE', retries, 0, 0, 'WITHSCORES')
  if first[2] then
    local wait = math.max(0, tonumber(first[2]) - now)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
end
return {claimed, lost, next_due}
