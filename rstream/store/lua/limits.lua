#!lua flags=allow-oom
-- Say what a shard may hold, or that nothing limits it. From the first call on what is added is counted, in bytes of
-- payload, key, event id and headers; what was there before is counted by index.lua.
--
-- KEYS[1] S         stream
-- KEYS[2] S:sealed  string: what is sealed needs no limits, it only shrinks
-- KEYS[3] S:size    hash: total (bytes counted so far), mark (the last mark's score), base (counted before the first entry),
--                   floor (before the first that is not processed, as seen last), maxlen, maxbytes, soft (1/1000), grain,
--                   uncounted (1 until index.lua has come to the first entry)
-- KEYS[4] S:marks   zset: entry id -> bytes counted before it
-- ARGV[1] maxlen    entries, "" = no limit
-- ARGV[2] maxbytes  bytes as they are counted, "" = no limit
-- ARGV[3] soft      1/1000 of the limits, above which producers are told how full it is; "" = nothing is counted any more
-- ARGV[4] grain     bytes between two marks
-- returns           1 where the shard is there and counts
-- cost              O(1)
-- include: padded
-- include: floors
local key, size, marks = KEYS[1], KEYS[3], KEYS[4]
if ARGV[3] == '' then
  redis.call('UNLINK', size, marks)
  return 0
end
if redis.call('EXISTS', key) == 0 then return 0 end
if redis.call('HEXISTS', size, 'total') == 0 or redis.call('EXISTS', marks) == 0 then
  local last
  local info = redis.call('XINFO', 'STREAM', key)
  for n = 1, #info, 2 do
    if info[n] == 'last-generated-id' then last = info[n + 1] end
  end
  redis.call('UNLINK', size, marks)
  redis.call('HSET', size, 'total', 0, 'mark', 0, 'base', 0, 'floor', 0)
  if redis.call('XLEN', key) > 0 then redis.call('HSET', size, 'uncounted', 1) end
  redis.call('ZADD', marks, 0, after(last))
end
redis.call('HSET', size, 'soft', ARGV[3], 'grain', ARGV[4])
local sealed = redis.call('EXISTS', KEYS[2]) == 1
for name, limit in pairs({maxlen = ARGV[1], maxbytes = ARGV[2]}) do
  if limit == '' or sealed then
    redis.call('HDEL', size, name)
  else
    redis.call('HSET', size, name, limit)
  end
end
return 1
