#!lua
-- Append events to one shard, each only if its event id was not appended so before: for consumers on another server,
-- whose ack cannot be in the same call. Sending it twice adds nothing.
--
-- KEYS[1]    S                     stream: the shard
-- KEYS[2...] S:emitted:<event id>  string: the entry id, one key for each event
-- ARGV[1] ttl     milliseconds to remember the events for
-- ARGV[2] events  msgpack array: payload, key, event id, headers (raw strings, "" = none), payload, ...
-- returns  how many were appended
-- cost     O(events)
-- include: append
local events = cmsgpack.unpack(ARGV[2])
local added = 0
for n = 0, #KEYS - 2 do
  local marker, at = KEYS[2 + n], 4 * n
  if redis.call('EXISTS', marker) == 0 then
    local id = append(KEYS[1], '*', events[at + 1], events[at + 2], events[at + 3], events[at + 4])
    redis.call('SET', marker, id, 'PX', ARGV[1])
    added = added + 1
  end
end
return added
