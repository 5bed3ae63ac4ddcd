-- lose(record, group, ranges, edge): write down what a group lost, in S:lost: group -> msgpack {count, edge, ranges, ms}.
-- ranges: {{first id, last id, count}, ...} · edge: the first id behind the last of them, where that is known, else "".
-- A range that begins at the edge of the one before goes on with it. Of many, the oldest two become one. Needs padded.
local RANGES = 128

local function lose(record, group, ranges, edge)
  local stored = redis.call('HGET', record, group)
  local count, before, kept = 0, '', {}
  if stored then count, before, kept = unpack(cmsgpack.unpack(stored)) end
  for n, range in ipairs(ranges) do
    count = count + range[3]
    local last = kept[#kept]
    if n == 1 and last and before ~= '' and range[1] == before then
      last[2], last[3] = range[2], last[3] + range[3]
    else
      kept[#kept + 1] = range
    end
  end
  while #kept > RANGES do
    local first = table.remove(kept, 1)
    local next = kept[1]
    local from = padded(first[1]) < padded(next[1]) and first[1] or next[1]
    local to = padded(first[2]) > padded(next[2]) and first[2] or next[2]
    kept[1] = {from, to, first[3] + next[3]}
  end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', record, group, cmsgpack.pack({count, edge, kept, now}))
end
