#!lua flags=allow-oom
-- Count what was in a shard before it had limits, from its first mark backwards: their marks have negative scores.
--
-- KEYS[1] S        stream
-- KEYS[2] S:size   hash, see limits.lua
-- KEYS[3] S:marks  zset
-- ARGV[1] look     entries that one call looks at
-- ARGV[2] budget   bytes
-- returns          1 where there is more to count
-- cost             O(entries), each copied inside the server
local key, size, marks = KEYS[1], KEYS[2], KEYS[3]
local grain = tonumber(redis.call('HGET', size, 'grain'))
local first = redis.call('ZRANGE', marks, 0, 0, 'WITHSCORES')
if not grain or not first[1] then return 0 end
local start, score, budget = first[1], tonumber(first[2]), tonumber(ARGV[2])
local marked, last, left = score, first[1], tonumber(ARGV[1])
local ended = false
while left > 0 and budget > 0 and not ended do
  local step = math.min(left, 50)
  local page = redis.call('XREVRANGE', key, '(' .. start, '-', 'COUNT', step)
  for _, entry in ipairs(page) do
    local weight = 16
    for n = 2, #entry[2], 2 do weight = weight + #entry[2][n] end
    score, budget, last = score - weight, budget - weight, entry[1]
    if marked - score >= grain then
      redis.call('ZADD', marks, string.format('%.0f', score), last)
      marked = score
    end
  end
  start, left, ended = last, left - #page, #page < step
end
if marked ~= score then redis.call('ZADD', marks, string.format('%.0f', score), last) end
redis.call('HSET', size, 'base', string.format('%.0f', score))
if ended then redis.call('HDEL', size, 'uncounted') end
return ended and 0 or 1
