#!lua flags=allow-oom
-- Seal a shard: its last id becomes the last possible one, so that Redis itself refuses every further XADD. No entry is
-- added, so that nobody who reads has to skip one. A shard that does not exist is made, to be sealed; one that was
-- sealed and removed is not.
-- (allow-oom: what was begun can be ended also when memory is full.)
--
-- KEYS[1] S         stream
-- KEYS[2] S:sealed  string: "<next generation> <last id before it was sealed>"
-- KEYS[3] S:size    hash: its limits are for who adds to it
-- ARGV[1] next      generation
-- returns {last id before it was sealed, 1 if it was sealed by this call}; sent twice, the second gets the same id
-- cost    O(1)
-- include: made
-- include: padded
local LAST = '18446744073709551615-18446744073709551615'

local function newest(one, other)
  return padded(one) > padded(other) and one or other
end

local sealed = redis.call('GET', KEYS[2])
local last = sealed and string.match(sealed, ' (%S+)$')
if last and redis.call('EXISTS', KEYS[1]) == 0 then return {last, 0} end
made(KEYS[1])
local info, raw = {}, redis.call('XINFO', 'STREAM', KEYS[1])
for n = 1, #raw, 2 do info[raw[n]] = raw[n + 1] end
if info['last-generated-id'] ~= LAST then
  last = newest(last or '0-0', info['last-generated-id'])
elseif last then
  return {last, 0}
else -- S:sealed is lost: what the stream still shows
  last = newest(info['max-deleted-entry-id'], info['last-entry'] and info['last-entry'][1] or '0-0')
end
redis.call('XSETID', KEYS[1], LAST)
redis.call('HDEL', KEYS[3], 'maxlen', 'maxbytes')
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. last)
return {last, 1}
