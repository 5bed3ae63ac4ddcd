-- living(stream, group): the names of the group's workers that are alive, as seen from this shard.
local function living(stream, group)
  local found = {}
  local all = redis.pcall('XINFO', 'CONSUMERS', stream, group)
  for _, flat in ipairs(all) do
    local info = {}
    for n = 1, #flat, 2 do info[flat[n]] = flat[n + 1] end
    if redis.call('EXISTS', stream .. ':alive:' .. group .. ':' .. info.name) == 1 then found[#found + 1] = info.name end
  end
  return found
end
