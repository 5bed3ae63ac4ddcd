-- append(stream, at, e, k, i, h): one entry in the wire format (payload, key, event id, headers; "" = none).
-- Returns its id; false where there is no such stream: a shard that was removed must not come back.
-- weight(e, k, i, h): the bytes that it counts as; what Redis adds to it by itself is in the factor of retention.py.
local function weight(e, k, i, h) return #e + #k + #i + #h + 16 end

local function append(stream, at, e, k, i, h)
  if h ~= '' then
    if k ~= '' then return redis.call('XADD', stream, 'NOMKSTREAM', at, 'e', e, 'k', k, 'i', i, 'h', h) end
    return redis.call('XADD', stream, 'NOMKSTREAM', at, 'e', e, 'i', i, 'h', h)
  end
  if k ~= '' then return redis.call('XADD', stream, 'NOMKSTREAM', at, 'e', e, 'k', k, 'i', i) end
  return redis.call('XADD', stream, 'NOMKSTREAM', at, 'e', e, 'i', i)
end
