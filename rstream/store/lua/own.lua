#!lua flags=allow-oom
-- Become the owner of a shard, unless another worker is. Every owner gets a higher epoch than the one before: it is
-- made of Redis's clock, so that it grows also where the last one was lost.
--
-- KEYS[1] S:owner:<group>  string, TTL: worker|epoch
-- KEYS[2] S:epoch:<group>  string: the last epoch
-- ARGV[1] worker
-- ARGV[2] lease  ms
-- ARGV[3] floor  an epoch that the new one has to be higher than: that of older shards with the same keys
-- returns worker|epoch of the owner
-- cost    O(1); sent twice it gives another epoch
local owner = redis.call('GET', KEYS[1])
if owner and string.match(owner, '^(.*)|') ~= ARGV[1] then return owner end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch = math.max((tonumber(redis.call('GET', KEYS[2])) or 0) + 1, tonumber(ARGV[3]) + 1, now)
epoch = string.format('%.0f', epoch)
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. epoch, 'PX', ARGV[2])
return ARGV[1] .. '|' .. epoch
