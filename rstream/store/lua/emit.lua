#!lua
-- Ack deliveries of one shard and append what their handlers returned to shards of another stream: all of a delivery
-- or nothing of it, each only if it still belongs to this worker and attempt (the fence).
-- (No allow-oom: when memory is full, what would be appended waits, and its delivery with it.)
--
-- KEYS[1] S                stream
-- KEYS[2] S:memo:<group>:  with an id behind it, the hash of that delivery's checkpoint and steps
-- KEYS[3...]               per shard that is appended to: S (stream), S:sealed (string)
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] outcomes  msgpack array of {id, attempt, marker, ttl, emits}
--           marker, ttl: as in settle.lua
--           emits: {0-based target, payload, key, event id, headers, 0-based target, ...} (raw strings, "" = none)
-- returns  {{0-based index, owner or "", deliveries}, ...} of the refused: nothing was changed for them
-- errors   SEALED: a shard that would be appended to is sealed, or there is no such shard: nothing at all was changed
-- cost     O(outcomes · log pending + emits)
-- include: append
local key, group, worker = KEYS[1], ARGV[1], ARGV[2]
local refused = {}

for n = 3, #KEYS, 2 do -- first, for an error in the midst would leave half of it done
  if redis.call('EXISTS', KEYS[n]) == 0 or redis.call('EXISTS', KEYS[n + 1]) == 1 then
    return redis.error_reply('SEALED ' .. KEYS[n])
  end
end

for n, outcome in ipairs(cmsgpack.unpack(ARGV[3])) do
  local id, attempt, marker, ttl, emits = unpack(outcome)
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  if not pending or pending[2] ~= worker or pending[4] ~= attempt then
    refused[#refused + 1] = {n - 1, pending and pending[2] or '', pending and pending[4] or 0}
  else
    for at = 1, #emits, 5 do
      append(KEYS[3 + 2 * emits[at]], '*', emits[at + 1], emits[at + 2], emits[at + 3], emits[at + 4])
    end
    -- Last: were an append to fail, the delivery would still be pending.
    if marker ~= '' then redis.call('SET', key .. ':once:' .. group .. ':' .. marker, id, 'PX', ttl) end
    redis.call('XACK', key, group, id)
    redis.call('UNLINK', KEYS[2] .. id)
  end
end
return refused
