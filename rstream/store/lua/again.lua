#!lua flags=allow-oom
-- Have a group handle entries of one key once more, in place: those that it has settled become pending for ~again, where
-- its workers find them when they look, with no attempt counted. What is pending already is left alone.
--
-- Of an ordered group no worker owns the shard meanwhile, and who does afterwards learns what is pending before it reads
-- on: so these come before newer entries of their key.
--
-- KEYS[1] S                stream
-- KEYS[2] S:owner:<group>  string
-- KEYS[3] S:epoch:<group>  string
-- ARGV[1] group
-- ARGV[2] forced  1 = also while workers of the group are alive
-- ARGV[3] token   by which the shard is held; "" = only say what would be done
-- ARGV[4] key
-- ARGV[5] start   id, or "(id" to page on
-- ARGV[6] end     id: what the group has read
-- ARGV[7] look    entries looked at
-- ARGV[8] budget  bytes of entries looked at, after which the page ends
-- returns {done, given (or given before, and not begun), left alone, last id looked at or "" at the end}, or
--         {living, name, ...} (nothing was changed)
-- cost    O(entries looked at + given · log pending), each copied inside the server
-- include: living
-- include: hold
local key, group, dry, wanted, at = KEYS[1], ARGV[1], ARGV[3] == '', ARGV[4], ARGV[5]
local look, budget = tonumber(ARGV[7]), tonumber(ARGV[8])
local STEP_MAX = 64
local seen, copied, given, left_alone = 0, 0, 0, 0

if ARGV[2] ~= '1' and not dry then
  local names = living(key, group)
  if names[1] then return {'living', unpack(names)} end
end
if not dry then hold(KEYS[2], KEYS[3], ARGV[3]) end

local function give(id)
  local pending = redis.call('XPENDING', key, group, id, id, 1)[1]
  if pending and pending[2] ~= '~again' then
    left_alone = left_alone + 1
    return
  end
  given = given + 1
  if not pending and not dry then
    redis.call('XCLAIM', key, group, '~again', 0, id, 'FORCE', 'RETRYCOUNT', 0, 'JUSTID')
  end
end

local function key_of(entry)
  local found
  for n = 1, #entry[2], 2 do
    copied = copied + #entry[2][n] + #entry[2][n + 1]
    if entry[2][n] == 'k' then found = entry[2][n + 1] end
  end
  return found
end

local last = ''
while seen < look and copied < budget do
  -- nobody knows the size of entries before they are copied: go by those before
  local step = seen == 0 and 4 or math.floor((budget - copied) / (copied / seen + 1))
  step = math.max(1, math.min(step, STEP_MAX, look - seen))
  local page = redis.call('XRANGE', key, at, ARGV[6], 'COUNT', step)
  for _, entry in ipairs(page) do
    seen = seen + 1
    if key_of(entry) == wanted then give(entry[1]) end
  end
  last = #page == step and page[#page][1] or ''
  if last == '' then break end
  at = '(' .. last
end
return {'done', given, left_alone, last}
