#!lua
-- Take or keep a replay: one runner at a time, and how far it has come.
--
-- KEYS[1] ns:replay:<stream>:<name>  hash: holder, until (ms), start, end, position, done, failed
-- ARGV[1] holder  who is asking
-- ARGV[2] lease   ms
-- ARGV[3...]      field, value pairs to store (the progress)
-- returns         {1, all fields} when held now, {0, ms until the other's lease ends} otherwise
-- cost            O(fields)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holder = redis.call('HGET', KEYS[1], 'holder')
if holder and holder ~= ARGV[1] then
  local left = tonumber(redis.call('HGET', KEYS[1], 'until') or 0) - now
  if left > 0 then return {0, left} end
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', now + tonumber(ARGV[2]), unpack(ARGV, 3))
return {1, redis.call('HGETALL', KEYS[1])}
