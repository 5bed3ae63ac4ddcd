-- position(stream, group): the id up to which the group was given entries, padded; nil where there is no such group, or no
-- such stream. Needs padded.
local function position(stream, group)
  for _, flat in ipairs(redis.pcall('XINFO', 'GROUPS', stream)) do
    local info = {}
    for n = 1, #flat, 2 do info[flat[n]] = flat[n + 1] end
    if info.name == group then return padded(info['last-delivered-id']) end
  end
end
