#!lua flags=allow-oom
-- Remove a group from one shard, with what was kept for its deliveries, unless a worker of it lives or it has dead letters
-- there, which nobody would look at any more. Sent twice, the second finds nothing.
--
-- KEYS[1] S                 stream; also S:alive:<group>:<worker>
-- KEYS[2] S:dead:<group>    stream
-- KEYS[3] S:parked:<group>  set of keys; with :<key> behind it, the zset of the ids that are put aside of it
-- KEYS[4] S:done            hash, see add.lua
-- KEYS[5...]                S:retry:, S:owner:, S:epoch:<group>
-- ARGV[1] group
-- ARGV[2] dry  1 = only look
-- returns {dead letters, name of a worker that lives, ...}; with any of them nothing was changed
-- cost    O(consumers + pending)
-- include: living
-- include: uncount
local letters, names = redis.call('XLEN', KEYS[2]), living(KEYS[1], ARGV[1])
if letters > 0 or names[1] or ARGV[2] == '1' then return {letters, unpack(names)} end
redis.pcall('XGROUP', 'DESTROY', KEYS[1], ARGV[1]) -- there may be no such stream
for _, key in ipairs(redis.call('SMEMBERS', KEYS[3])) do redis.call('UNLINK', KEYS[3] .. ':' .. key) end
uncount(KEYS[4], '', ARGV[1])
redis.call('UNLINK', KEYS[2], KEYS[3], unpack(KEYS, 5))
return {0}
