#!lua flags=allow-oom
-- Say that a worker lives, as seen from its shards, and that it still owns those that it owns.
--
-- KEYS    per shard: S:alive:<group>:<worker>  string: the ms since when it is known to live without a gap
--                    S:owner:<group>           string: worker|epoch
-- ARGV[1] lease  ms
-- ARGV[2...]     per shard: the worker|epoch by which it is owned, "" = it is not
-- returns {how many alive keys were there already, now (ms)}: fewer than all means that the lease had run out (or never
--         began)
-- cost    O(shards)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = 0
for n = 1, #KEYS / 2 do
  local alive, owner, token = KEYS[2 * n - 1], KEYS[2 * n], ARGV[1 + n]
  local since = tonumber(redis.call('GET', alive))
  if since then known = known + 1 end
  -- A clock that was set back must not make the worker look alive since the future.
  redis.call('SET', alive, math.min(since or now, now), 'PX', ARGV[1])
  if token ~= '' and redis.call('GET', owner) == token then redis.call('PEXPIRE', owner, ARGV[1]) end
end
return {known, now}
