-- append(stream, at, e, k, i, h): one entry in the wire format (payload, key, event id, headers; "" = none).
-- Returns its id.
local function append(stream, at, e, k, i, h)
  if h ~= '' then
    if k ~= '' then return redis.call('XADD', stream, at, 'e', e, 'k', k, 'i', i, 'h', h) end
    return redis.call('XADD', stream, at, 'e', e, 'i', i, 'h', h)
  end
  if k ~= '' then return redis.call('XADD', stream, at, 'e', e, 'k', k, 'i', i) end
  return redis.call('XADD', stream, at, 'e', e, 'i', i)
end
