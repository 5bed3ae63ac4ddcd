-- add(record, group, counts): count what became of deliveries, in S:done: <kind>:<group> -> how many, ever. Where that
-- cannot be, as somebody has written there what is no number, they are settled all the same.
local function add(record, group, counts)
  for kind, number in pairs(counts) do redis.pcall('HINCRBY', record, kind .. ':' .. group, number) end
end
