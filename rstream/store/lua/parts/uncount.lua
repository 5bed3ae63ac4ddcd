-- uncount(record, prefix, group): forget what was counted of a group: the fields <prefix><kind>:<group>.
local function uncount(record, prefix, group)
  for _, field in ipairs(redis.call('HKEYS', record)) do
    if string.sub(field, 1, #prefix) == prefix and string.sub(field, -#group - 1) == ':' .. group then
      redis.call('HDEL', record, field)
    end
  end
end
