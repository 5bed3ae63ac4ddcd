#!lua
-- Append one flush of a producer to one shard, exactly once.
--
-- KEYS[1] S                 stream: the shard
-- KEYS[2] S:seq:<producer>  string: the last flush applied, "seq first-id count"
-- KEYS[3] S:size            hash: what the shard holds and may hold, see limits.lua; not there where nothing limits it
-- KEYS[4] S:marks           zset: entry id -> bytes that were counted before it
--                           (Both may be left out where the stream has no limits: a cluster does not serve a call with
--                           keys that are not there while it moves their slot.)
-- ARGV[1] seq    number of this flush; a resend carries the same one
-- ARGV[2] ttl    milliseconds to remember the flush for
-- ARGV[3] flush  msgpack array: payload, key, event id, headers (raw strings, "" = none), payload, ...
-- returns        the first id; the others follow it without a gap (ms-seq, ms-(seq+1), ...). Above the soft limit
--                {first id, level}: what is not processed, in 1/1000 of the limit
-- errors         nothing is added:
--                STALE: a later flush was applied already, so this one is a late packet
--                SEALED: there is no such shard
--                FULL: it would pass a limit, and what is not processed is in the way
--                LIMITED: there are limits, so KEYS[3] and KEYS[4] are needed
--                ERR … exhausted the last possible ID: Redis's own, of a shard that is sealed
-- cost           O(entries), one XADD each; with limits, and where the shard is full, what room.lua says
-- include: append
-- What a stream without limits need not pay for is made only where it is called.
local function tallied(flush)
-- include: padded
-- include: floors
-- include: base
-- include: room
  local size = 0
  for n = 1, #flush, 4 do size = size + weight(flush[n], flush[n + 1], flush[n + 2], flush[n + 3]) end
  return room(KEYS[1], KEYS[3], KEYS[4], #flush / 4, size, 0)
end

local last = redis.call('GET', KEYS[2])
if last then
  local seq, first = string.match(last, '^(%d+) (%S+)')
  if tonumber(seq) == tonumber(ARGV[1]) then
    -- A write: a WAIT that follows on this connection waits for what the connection wrote last, so that a resend which
    -- wrote nothing would not be waited for, and neither would the entries, which came by another connection.
    redis.call('PEXPIRE', KEYS[2], ARGV[2])
    return first
  end
  if tonumber(seq) > tonumber(ARGV[1]) then
    return redis.error_reply('STALE flush ' .. ARGV[1] .. ' after ' .. seq)
  end
end

local flush = cmsgpack.unpack(ARGV[3])
local tally
-- Not declared: while a cluster moves the slot, what is not there cannot be asked for. Then it is not counted this once.
if redis.pcall('EXISTS', KEYS[3] or KEYS[1] .. ':size') == 1 then
  if not KEYS[3] then return redis.error_reply('LIMITED shard ' .. KEYS[1]) end
  tally = tallied(flush)
end
if tally and tally.full then return redis.error_reply('FULL shard ' .. KEYS[1]) end

local stream, at, first = KEYS[1], '*', nil
for n = 1, #flush, 4 do
  local e, k, i, h, id = flush[n], flush[n + 1], flush[n + 2], flush[n + 3], nil
  if first and k ~= '' and h == '' then
    -- As append does, with an argument less, for the stream is there: what an XADD costs goes by how many it has.
    id = redis.call('XADD', stream, at, 'e', e, 'k', k, 'i', i)
  else
    id = append(stream, at, e, k, i, h)
  end
  if not id then return redis.error_reply('SEALED there is no shard ' .. KEYS[1]) end
  if not first then
    first = id
    -- Redis 7.0 reads the clock anew for every '*' in a script; fixing the milliseconds keeps ids consecutive.
    at = string.match(id, '^(%d+)') .. '-*'
  end
  if tally then tally.add(id, weight(e, k, i, h)) end
end
if tally then tally.close() end
redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. first .. ' ' .. (#flush / 4), 'PX', ARGV[2])
if tally and tally.level > 0 then return {first, tally.level} end
return first
