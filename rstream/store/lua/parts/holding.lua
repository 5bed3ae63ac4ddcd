-- holding(stream, group, pending, most): what is known of one that is pending, as XPENDING gives it: {id, who has it, ms since it
-- was handed to it or its attempt was begun, deliveries, due (ms) or false, ms that the lease of its worker has left (-2:
-- none), bytes of its checkpoint, the checkpoint or false where it has more than `most`, steps that it has finished, "attempt
-- worker" that kept these or ""}
local function holding(stream, group, pending, most)
  local id, name = pending[1], pending[2]
  local memo = stream .. ':memo:' .. group .. ':' .. id
  local kept = redis.call('HGET', memo, 'by')
  local size = kept and redis.call('HSTRLEN', memo, 'c') or 0
  return {
    id, name, pending[3], pending[4],
    redis.call('ZSCORE', stream .. ':retry:' .. group, id),
    redis.call('PTTL', stream .. ':alive:' .. group .. ':' .. name),
    size,
    size > 0 and size <= most and redis.call('HGET', memo, 'c'),
    kept and redis.call('HLEN', memo) - 3 - (size > 0 and 1 or 0) or 0,
    kept or '',
  }
end
