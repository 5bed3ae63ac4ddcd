#!lua flags=no-writes
-- Which generations of a stream are written to, or were and are still there.
--
-- KEYS[1] ns:stream:<name>  hash
-- returns their numbers
-- cost    O(fields)
local found, current = {}, tonumber(redis.call('HGET', KEYS[1], 'generation'))
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local number = tonumber(string.match(field, '^shards:(%d+)$'))
  if number and number <= current then found[#found + 1] = number end
end
return found
