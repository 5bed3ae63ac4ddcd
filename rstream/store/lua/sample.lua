#!lua flags=allow-oom
-- Add a sample to the history of a stream, unless somebody else has done so since what it starts from was read: so that
-- what lies between two samples is added once.
-- (allow-oom: it is small and bounded, and of a full memory one wants to know most.)
--
-- KEYS[1] ns:history:<stream>  hash, see history.py
-- ARGV[1] seq     as it was read, 0 = there was none
-- ARGV[2] birth   of a history that begins with this
-- ARGV[3] at      ms
-- ARGV[4] resets
-- ARGV[5] state   "" = it is the same
-- ARGV[6] closed  msgpack array of {field, record, ...}: put behind what is there
-- ARGV[7] limit   bytes of a field: a clock that goes back and forth must not fill the memory
-- ARGV[8...]      fields that go
-- returns 1, or 0 where it was somebody else's turn (nothing was changed)
-- cost    O(fields that are written and go)
local key = KEYS[1]
if (tonumber(redis.call('HGET', key, 'seq')) or 0) ~= tonumber(ARGV[1]) then return 0 end
redis.call('HSETNX', key, 'birth', ARGV[2])
redis.call('HSET', key, 'seq', ARGV[1] + 1, 'at', ARGV[3], 'resets', ARGV[4])
if ARGV[5] ~= '' then redis.call('HSET', key, 'state', ARGV[5]) end
local closed = cmsgpack.unpack(ARGV[6])
for n = 1, #closed, 2 do
  local whole = (redis.call('HGET', key, closed[n]) or '') .. closed[n + 1]
  if #whole <= tonumber(ARGV[7]) then redis.call('HSET', key, closed[n], whole) end
end
for from = 8, #ARGV, 1000 do redis.call('HDEL', key, unpack(ARGV, from, math.min(from + 999, #ARGV))) end
return 1
