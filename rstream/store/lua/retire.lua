#!lua flags=allow-oom
-- Remove a sealed shard in which nothing is left: no entry, nothing pending for any group, no dead letter. What is empty
-- stays so: nothing is published to a sealed shard, and what is not stored cannot be given back to a group. Its seal
-- stays for long: whoever stood still since before must not make the shard anew, for nobody would read it.
--
-- KEYS[1] S         stream; per group also S:dead:, S:retry:, S:parked:, S:owner:, S:epoch:<group>
-- KEYS[2] S:sealed  string
-- KEYS[3] S:size    hash
-- KEYS[4] S:marks   zset
-- KEYS[5] S:done    hash: stays for as long as the seal, and learns how many entries there were ever: until the totals
--                   of the stream have them, and for whoever has not heard that they do
-- ARGV[1] remove    1 = if it is empty, remove it; 0 = only look
-- ARGV[2] ttl       ms, of the seal
-- ARGV[3...]        groups of the stream, for a shard whose stream was deleted
-- returns           1 where nothing is left, else 0
-- cost              O(groups)
local key = KEYS[1]
local names = {key, KEYS[3], KEYS[4]}
for n = 3, #ARGV do
  if redis.call('XLEN', key .. ':dead:' .. ARGV[n]) > 0 then return 0 end
end
if redis.call('EXISTS', key) == 1 then
  if redis.call('XLEN', key) > 0 or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local group = {}
    for n = 1, #flat, 2 do group[flat[n]] = flat[n + 1] end
    if group.pending > 0 or redis.call('XLEN', key .. ':dead:' .. group.name) > 0 then return 0 end
    for _, kind in ipairs({':dead:', ':retry:', ':parked:', ':owner:', ':epoch:'}) do
      names[#names + 1] = key .. kind .. group.name
    end
  end
end
if ARGV[1] == '1' then
  if redis.call('EXISTS', key) == 1 then
    local info, raw = {}, redis.call('XINFO', 'STREAM', key)
    for n = 1, #raw, 2 do info[raw[n]] = raw[n + 1] end
    redis.call('HSET', KEYS[5], 'added', info['entries-added'])
  end
  redis.call('PEXPIRE', KEYS[5], ARGV[2])
  if redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then redis.call('SET', KEYS[2], '0 0-0', 'PX', ARGV[2]) end
  for from = 1, #names, 1000 do redis.call('UNLINK', unpack(names, from, math.min(from + 999, #names))) end
end
return 1
