#!lua flags=allow-oom
-- Say up to which id a shard is archived: from there on it may be trimmed. Never back.
-- (allow-oom: archiving is what makes room.)
--
-- KEYS[1] S      stream
-- ARGV[1] group  ~archive
-- ARGV[2] id
-- returns        1 where the group stands there or after it, 0 where there is no such group
-- cost           O(groups)
-- include: padded
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for n = 1, #flat, 2 do group[flat[n]] = flat[n + 1] end
  if group.name == ARGV[1] then
    if padded(group['last-delivered-id']) < padded(ARGV[2]) then
      redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[2])
    end
    return 1
  end
end
return 0
