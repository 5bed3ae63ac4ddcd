#!lua flags=allow-oom
-- Pause a group: who did it, when and why is kept with the stream, for workers to find. One that is paused stays as it is.
-- (allow-oom: when memory is full somebody may have to stop a group.)
--
-- KEYS[1] ns:stream:<name>  hash
-- ARGV[1] group
-- ARGV[2] by
-- ARGV[3] why
-- returns {1 if it was paused by this call, JSON {by, at (ms), why}}; false where there is no such stream
-- cost    O(1)
local field = 'paused:' .. ARGV[1]
if redis.call('HEXISTS', KEYS[1], 'generation') == 0 then return false end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local new = redis.call('HSETNX', KEYS[1], field, cjson.encode({by = ARGV[2], at = now, why = ARGV[3]}))
return {new, redis.call('HGET', KEYS[1], field)}
