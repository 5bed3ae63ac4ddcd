#!lua flags=no-writes
-- Look whether it is time to sample a stream for its history; where it is, what one has to know for that.
--
-- KEYS[1] ns:history:<stream>  hash, see history.py
-- ARGV[1] every  ms between two samples
-- returns {now (ms), seq, birth or "", resets, state or "", names of fields}; of one that is not due {now, seq, birth,
--         resets}
-- cost    O(1), where it is due O(fields)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local seq, birth, resets, at = unpack(redis.call('HMGET', KEYS[1], 'seq', 'birth', 'resets', 'at'))
local told = {now, tonumber(seq) or 0, birth or '', tonumber(resets) or 0}
local since = tonumber(at) and now - at
if since and since >= 0 and since < tonumber(ARGV[1]) then return told end
told[5], told[6] = redis.call('HGET', KEYS[1], 'state') or '', redis.call('HKEYS', KEYS[1])
return told
