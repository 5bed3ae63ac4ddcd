-- add(record, group, counts): count what became of deliveries, in S:done: <kind>:<group> -> how many, ever.
local function add(record, group, counts)
  for kind, number in pairs(counts) do redis.call('HINCRBY', record, kind .. ':' .. group, number) end
end
