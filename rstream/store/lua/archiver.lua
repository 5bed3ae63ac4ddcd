#!lua flags=allow-oom
-- Who archives a stream; and whether anybody shall. The lease only saves work: what is archived is decided by the
-- conditional write of the manifest.
--
-- KEYS[1] ns:archiver:<stream>  string, TTL: the archiver; without TTL, "~stopped": it was switched off
-- ARGV[1] step:
--           take   be it for another lease, unless somebody else is, or it was switched off
--           leave  be it no more
--           stop   switch it off
--           start  switch it on again
--           look   change nothing
-- ARGV[2] archiver  who is asking
-- ARGV[3] lease     ms
-- returns who it is then, "~stopped", or ""
-- cost    O(1)
local key, step, me = KEYS[1], ARGV[1], ARGV[2]
local holder = redis.call('GET', key) or ''
if step == 'stop' then
  redis.call('SET', key, '~stopped')
elseif step == 'start' and holder == '~stopped' or step == 'leave' and holder == me then
  redis.call('DEL', key)
elseif step == 'take' and (holder == '' or holder == me) then
  redis.call('SET', key, me, 'PX', ARGV[3])
end
return redis.call('GET', key) or ''
