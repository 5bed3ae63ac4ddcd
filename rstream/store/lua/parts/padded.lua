-- padded(id): an id as text that sorts as ids do. plain(text): the id again, without a mark behind it.
local function padded(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end

local function plain(text)
  local ms, seq = string.match(text, '^0*(%d+)-0*(%d+)!?$')
  return ms .. '-' .. seq
end
