#!lua flags=allow-oom
-- Say how many times Redis lost data, for all who remember: never fewer than before.
--
-- KEYS[1] ns:history:<stream>  hash, see history.py
-- ARGV[1] resets
-- returns those that are known now
-- cost    O(1)
local known = tonumber(redis.call('HGET', KEYS[1], 'resets')) or 0
if known >= tonumber(ARGV[1]) then return known end
redis.call('HSET', KEYS[1], 'resets', ARGV[1])
return tonumber(ARGV[1])
