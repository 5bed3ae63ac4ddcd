-- lose(record, group, ranges, edge): write down what a group lost, in S:lost: group -> msgpack {count, edge, ranges, ms}.
-- ranges: {{first id, last id, count}, ...} · edge: the first id behind the last of them, where that is known, else "".
-- They are kept in the order of ids. One that begins at the edge, or with the number after another's end, goes on with
-- that: nothing can be in between. Of very many, the oldest two become one. Needs padded.
local RANGES = 128

local function lose(record, group, ranges, edge)
  local stored = redis.call('HGET', record, group)
  local count, before, kept, place = 0, '', {}, {}
  if stored then count, before, kept = unpack(cmsgpack.unpack(stored)) end
  for _, range in ipairs(ranges) do
    count = count + range[3]
    kept[#kept + 1] = range
  end
  for _, range in ipairs(kept) do place[range] = padded(range[1]) end
  table.sort(kept, function(one, other) return place[one] < place[other] end)

  local joined = {}
  for _, range in ipairs(kept) do
    local last = joined[#joined]
    local ms, seq = string.match(last and last[2] or '0-0', '^(%d+)-(%d+)$')
    local next = #seq <= 15 and ms .. '-' .. string.format('%.0f', seq + 1)
    if last and (range[1] == next or range[1] == before) then
      last[2], last[3] = range[2], last[3] + range[3]
    else
      joined[#joined + 1] = range
    end
  end
  while #joined > RANGES do
    local first = table.remove(joined, 1)
    joined[1] = {first[1], joined[1][2], first[3] + joined[1][3]}
  end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', record, group, cmsgpack.pack({count, edge, joined, now}))
end
