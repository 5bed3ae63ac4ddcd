#!lua flags=allow-oom
-- A replay's stored state: one runner at a time, and how far it has come. Fenced: who does not hold it changes nothing.
-- Every step may be sent twice.
--
-- KEYS[1] ns:replay:<stream>:<name>  hash, TTL: holder, until (ms), and what the holder stores
-- ARGV[1] step:
--           take    become the holder, unless somebody else is until a time to come
--           restart the same, and forget what was stored
--           keep    hold it for another lease
--           leave   let go of it: the next may take it at once
--           finish  remove it all
-- ARGV[2] holder  who is asking
-- ARGV[3] lease   ms
-- ARGV[4] ttl     ms after which an abandoned replay is forgotten
-- ARGV[5...]      field, value pairs to store
-- returns {1, all fields} (take, restart), {1} when done; {0, holder, until, ms left} of the other holder otherwise
-- cost    O(fields)
local key, step, me = KEYS[1], ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taking = step == 'take' or step == 'restart'
local state = redis.call('HMGET', key, 'holder', 'until')
local holder, held_until = state[1], tonumber(state[2] or 0)

if step == 'finish' and not holder then return {1} end -- our first try has removed it
if holder ~= me and (not taking or held_until > now) then
  return {0, holder or '', held_until, held_until - now}
end
if step == 'finish' or step == 'restart' then redis.call('DEL', key) end
if step == 'finish' then return {1} end

local new_until = step == 'leave' and 0 or now + tonumber(ARGV[3])
redis.call('HSET', key, 'holder', me, 'until', string.format('%.0f', new_until), unpack(ARGV, 5))
redis.call('PEXPIRE', key, ARGV[4])
return {1, taking and redis.call('HGETALL', key) or nil}
