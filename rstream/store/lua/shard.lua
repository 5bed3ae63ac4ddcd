#!lua flags=allow-oom
-- Make a shard where it does not exist, and have its ids begin after those of another generation.
-- (allow-oom: what was begun can be ended also when memory is full.)
--
-- KEYS[1] S         stream
-- KEYS[2] S:sealed  string
-- ARGV[1] floor     id that its own ids have to be greater than; the last one never becomes smaller
-- returns           1 where the shard is sealed: then nothing was changed
-- cost              O(1)
-- include: made
-- include: padded
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
made(KEYS[1])
local last
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for n = 1, #info, 2 do
  if info[n] == 'last-generated-id' then last = info[n + 1] end
end
if last == '18446744073709551615-18446744073709551615' then return 1 end -- S:sealed is lost
if padded(last) < padded(ARGV[1]) then redis.call('XSETID', KEYS[1], ARGV[1]) end
return 0
