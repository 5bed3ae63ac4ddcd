#!lua flags=allow-oom
-- Keep a checkpoint or a step's result for the attempts to come, fenced like a settle.
-- (allow-oom: work that is under way goes on when memory is full; ARGV[8] bounds what it may take.)
--
-- KEYS[1] S                    stream
-- KEYS[2] S:memo:<group>:<id>  hash: c, s:<step> -> value · by -> "attempt worker" that wrote last · n -> number of
--                              its last checkpoint · bytes -> of all values
-- ARGV[1] group
-- ARGV[2] worker
-- ARGV[3] id
-- ARGV[4] attempt
-- ARGV[5] field    "" asks for the fence alone
-- ARGV[6] value
-- ARGV[7] number   of this write in the attempt, rising: a checkpoint that arrives late leaves a newer one alone
-- ARGV[8] limit    bytes of all values
-- ARGV[9] ttl      ms, from the last write
-- returns  {1}, or {0, owner or "", deliveries} where the delivery is not this worker's any more, or {-1} where the
--          values would be too large (in both cases nothing was changed)
-- cost     O(log pending + value)
local memo, field, value, number = KEYS[2], ARGV[5], ARGV[6], tonumber(ARGV[7])
local attempt, by = tonumber(ARGV[4]), ARGV[4] .. ' ' .. ARGV[2]

local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not pending or pending[2] ~= ARGV[2] or pending[4] ~= attempt then
  return {0, pending and pending[2] or '', pending and pending[4] or 0}
end
if field == '' then return {1} end

local new = redis.call('HGET', memo, 'by') ~= by
-- A first attempt has nothing before it: what is there was left by an earlier life of the group.
local leftover = new and attempt == 1
local bytes, last = #value, 0
if not leftover then
  bytes = bytes + (tonumber(redis.call('HGET', memo, 'bytes')) or 0) - redis.call('HSTRLEN', memo, field)
  last = not new and tonumber(redis.call('HGET', memo, 'n')) or 0
end
if field == 'c' and number <= last then return {1} end
if bytes > tonumber(ARGV[8]) then return {-1} end

if leftover then redis.call('DEL', memo) end
redis.call('HSET', memo, 'by', by, 'n', field == 'c' and number or last, 'bytes', bytes, field, value)
redis.call('PEXPIRE', memo, ARGV[9])
return {1}
