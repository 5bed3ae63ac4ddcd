-- floors(stream): per group {name, id, pending, last-delivered id, unread}: all before that id it has settled; unread as
-- Redis has it, which may be wrong, or -1. after(id): the id behind one. Needs padded.
local function after(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq == '18446744073709551615' then
    return ms == seq and id or string.format('%.0f-0', ms + 1)
  end
  if #seq > 15 then return id end -- no number here can hold it: rather one entry too many is kept
  return ms .. '-' .. string.format('%.0f', seq + 1)
end

local function floors(stream)
  local found = {}
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local group = {}
    for n = 1, #flat, 2 do group[flat[n]] = flat[n + 1] end
    local floor = after(group['last-delivered-id'])
    local oldest = group.pending > 0 and redis.call('XPENDING', stream, group.name, '-', '+', 1)[1]
    if oldest and padded(oldest[1]) < padded(floor) then floor = oldest[1] end
    found[#found + 1] = {group.name, floor, group.pending, group['last-delivered-id'], group.lag or -1}
  end
  return found
end
