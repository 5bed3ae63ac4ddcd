#!lua flags=no-writes
-- Where a window of one shard ends, and where the shard begins, payloads left where they are.
--
-- KEYS[1] S      stream
-- ARGV[1] start  id
-- ARGV[2] end    id
-- ARGV[3] first  1 = tell also the first id of the shard
-- returns        {newest id of the window or "", first id of the shard or ""}
-- cost           O(1), plus copying these entries inside the server
local newest = redis.call('XREVRANGE', KEYS[1], ARGV[2], ARGV[1], 'COUNT', 1)[1]
local first = ARGV[3] == '1' and redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
return {newest and newest[1] or '', first and first[1] or ''}
