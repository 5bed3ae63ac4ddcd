#!lua flags=allow-oom
-- Declare a stream, or learn what is stored of it: the stored truth wins. Also when memory is full: a worker that
-- could not start then could not drain either.
--
-- KEYS[1] ns:stream:<name>  hash: generation, shards:<g>, retired:<g>, gone:<g>, key, versions, schema:<v>,
--                           version:<digest>, retention (JSON)
-- ARGV[1] shards  of the first generation
-- ARGV[2] key     the key field, "" = none
-- ARGV[3] schema  JSON Schema of the events
-- ARGV[4] digest  of the schema: a schema that is stored already keeps its version
-- ARGV[5] compared  how many versions the caller has compared its schema with: a new one is stored only if there are
--                 no more, so that of two who declare at once the second compares itself with the first; -1: it is not
--                 stored where there are none either
-- ARGV[6] retention  JSON, "" = none declared: of several who declare one, the first counts
-- returns         {generation, key, version of this schema (0: not stored), {generation, its shards, …} of all that
--                  are stored, the same of those that were removed, {version, schema, …} of those not compared yet,
--                  the retention that is stored or "", 1 if it was stored by this call, 1 if the stream was}
-- cost            O(fields)
-- Where it is there already, nothing is written: who publishes need not have the right to.
local function once(field, value)
  if redis.call('HGET', KEYS[1], field) then return 0 end
  return redis.call('HSETNX', KEYS[1], field, value)
end

local made = once('generation', 1)
local generation = redis.call('HGET', KEYS[1], 'generation')
once('shards:' .. generation, ARGV[1])
once('key', ARGV[2])
local kept = ARGV[6] ~= '' and once('retention', ARGV[6]) or 0
local version = redis.call('HGET', KEYS[1], 'version:' .. ARGV[4])
local compared, versions = tonumber(ARGV[5]), tonumber(redis.call('HGET', KEYS[1], 'versions') or 0)
local others = {}
for number = math.max(0, compared) + 1, versions do
  others[#others + 1] = number
  others[#others + 1] = redis.call('HGET', KEYS[1], 'schema:' .. number)
end
if not version and versions > compared then
  version = 0
elseif not version then
  version = redis.call('HINCRBY', KEYS[1], 'versions', 1)
  redis.call('HSET', KEYS[1], 'schema:' .. version, ARGV[3], 'version:' .. ARGV[4], version)
end
local stored, removed = {}, {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local kind, number = string.match(field, '^(%a+):(%d+)$')
  local into = kind == 'shards' and stored or (kind == 'retired' or kind == 'gone') and removed
  if into then
    into[#into + 1] = tonumber(number)
    into[#into + 1] = tonumber(redis.call('HGET', KEYS[1], field))
  end
end
return {tonumber(generation), redis.call('HGET', KEYS[1], 'key'), tonumber(version), stored, removed, others,
  redis.call('HGET', KEYS[1], 'retention') or '', kept, made}
