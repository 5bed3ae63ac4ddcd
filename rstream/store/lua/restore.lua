#!lua flags=allow-oom
-- Give the versions of a stream's schema back their numbers, where Redis lost what was stored of the stream. Where
-- somebody has given numbers since, those hold: nothing is stored from the first on that is another one's.
--
-- KEYS[1] ns:stream:<name>  hash: versions, schema:<v>, version:<digest>
-- ARGV    digest, schema of version 1, of version 2, …
-- returns 1 where all have the numbers that they had, else 0
-- cost    O(versions)
local versions = tonumber(redis.call('HGET', KEYS[1], 'versions') or 0)
for n = 1, #ARGV, 2 do
  local number, digest = (n + 1) / 2, ARGV[n]
  local found = tonumber(redis.call('HGET', KEYS[1], 'version:' .. digest))
  if number > versions and not found then
    redis.call('HSET', KEYS[1], 'versions', number, 'schema:' .. number, ARGV[n + 1], 'version:' .. digest, number)
  elseif found ~= number then
    return 0
  end
end
return 1
