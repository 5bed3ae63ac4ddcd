#!lua flags=allow-oom
-- The steps of a resharding, and of the removal of an old generation, that change what is stored of the stream. Every
-- step may be sent twice, and by several at once.
-- (allow-oom: what was begun can be ended also when memory is full.)
--
-- KEYS[1] ns:stream:<name>  hash: generation, shards:<g>; retired:<g> (shards of a generation that is being removed);
--                           gone:<g> (of one that was: what was done in it is still remembered there);
--                           done:<kind>:<group>, done:added: totals of all that are gone, see totals.py
-- ARGV[1] step:
--           look
--           plan    the next generation, with so many shards, unless one is planned already, or there are as many now
--           flip    write to this generation, if it is planned and the one before is written to
--           retire  nobody shall look at this generation any more, if it is an older one
--           forget  nothing is left of this generation; what it had counted is added to the totals, once
-- ARGV[2] shards, or generation
-- ARGV[3...] what it had counted: name, number, ...
-- returns {generation, 1 if something was changed, {g, shards, ...}, {g, shards, ...} of those being removed}; {} where
--         there is no such stream
-- cost    O(fields)
local key, step, given = KEYS[1], ARGV[1], ARGV[2]
local generation = tonumber(redis.call('HGET', key, 'generation'))
if not generation then return {} end
local changed = 0

if step == 'plan' and redis.call('HGET', key, 'shards:' .. generation) ~= given then
  changed = redis.call('HSETNX', key, 'shards:' .. (generation + 1), given)
elseif step == 'flip' and tonumber(given) == generation + 1 and redis.call('HEXISTS', key, 'shards:' .. given) == 1 then
  redis.call('HSET', key, 'generation', given)
  generation, changed = generation + 1, 1
elseif step == 'retire' and tonumber(given) < generation then
  local shards = redis.call('HGET', key, 'shards:' .. given)
  if shards then
    redis.call('HSET', key, 'retired:' .. given, shards)
    changed = redis.call('HDEL', key, 'shards:' .. given)
  end
elseif step == 'forget' then
  local shards = redis.call('HGET', key, 'retired:' .. given)
  if shards then
    redis.call('HSET', key, 'gone:' .. given, shards)
    changed = redis.call('HDEL', key, 'retired:' .. given)
    for n = 3, #ARGV, 2 do redis.call('HINCRBY', key, 'done:' .. ARGV[n], ARGV[n + 1]) end
  end
end

local shards, retired = {}, {}
for _, field in ipairs(redis.call('HKEYS', key)) do
  local kind, number = string.match(field, '^(%a+):(%d+)$')
  local into = kind == 'shards' and shards or kind == 'retired' and retired
  if into then
    into[#into + 1] = tonumber(number)
    into[#into + 1] = tonumber(redis.call('HGET', key, field))
  end
end
return {generation, changed, shards, retired}
