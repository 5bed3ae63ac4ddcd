#!lua flags=allow-oom
-- Say that a worker lives, as seen from its shards.
--
-- KEYS    S:alive:<group>:<worker> of every shard: string, the ms since when it is known to live without a gap
-- ARGV[1] lease  ms
-- returns {how many keys were there already, now (ms)}: fewer than all means that the lease had run out (or never
--         began)
-- cost    O(shards)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = 0
for _, key in ipairs(KEYS) do
  local since = tonumber(redis.call('GET', key))
  if since then known = known + 1 end
  -- A clock that was set back must not make the worker look alive since the future.
  redis.call('SET', key, math.min(since or now, now), 'PX', ARGV[1])
end
return {known, now}
