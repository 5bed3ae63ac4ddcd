-- append(stream, at, e, k, i, h): one entry in the wire format (payload, key, event id, headers; "" = none).
-- Returns its id; false where there is no such stream: a shard that was removed must not come back.
local function append(stream, at, e, k, i, h)
  if h ~= '' then
    if k ~= '' then return redis.call('XADD', stream, 'NOMKSTREAM', at, 'e', e, 'k', k, 'i', i, 'h', h) end
    return redis.call('XADD', stream, 'NOMKSTREAM', at, 'e', e, 'i', i, 'h', h)
  end
  if k ~= '' then return redis.call('XADD', stream, 'NOMKSTREAM', at, 'e', e, 'k', k, 'i', i) end
  return redis.call('XADD', stream, 'NOMKSTREAM', at, 'e', e, 'i', i)
end
