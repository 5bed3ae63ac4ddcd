#!lua
-- Append events to one shard, each only if its event id was not appended so before: for consumers on another server,
-- whose ack cannot be in the same call. Sending it twice adds nothing.
--
-- KEYS[1]    S                     stream: the shard
-- KEYS[2]    S:sealed              string: nothing is appended any more
-- KEYS[3...] S:emitted:<event id>  string: the entry id, one key for each event
-- ARGV[1] ttl     milliseconds to remember the events for
-- ARGV[2] events  msgpack array: payload, key, event id, headers (raw strings, "" = none), payload, ...
-- returns  {0-based event, ...} of those that are not in the shard: it is sealed, or there is no such shard
-- cost     O(events)
-- include: append
local events = cmsgpack.unpack(ARGV[2])
local open = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('EXISTS', KEYS[2]) == 0
local left = {}
for n = 0, #KEYS - 3 do
  local marker, at = KEYS[3 + n], 4 * n
  -- A write also where the event is known: see publish.lua about WAIT.
  if redis.call('PEXPIRE', marker, ARGV[1]) == 0 then
    if open then
      local id = append(KEYS[1], '*', events[at + 1], events[at + 2], events[at + 3], events[at + 4])
      redis.call('SET', marker, id, 'PX', ARGV[1])
    else
      left[#left + 1] = n
    end
  end
end
return left
