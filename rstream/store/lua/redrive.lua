#!lua flags=allow-oom
-- Give dead letters of one shard back to their group, each as a whole or not at all: its entry becomes pending for
-- ~again, where the group's workers find it within a second, with no attempt counted; the letter is deleted.
-- No other group notices. Sent twice, the second finds the letters gone.
--
-- KEYS[1] S               stream
-- KEYS[2] S:dead:<group>  stream
-- ARGV[1] group
-- ARGV[2] 1 = only say what would be done
-- ARGV[3...] letter ids
-- returns one verdict a letter; all but the first change nothing:
--           again    its entry is given back
--           gone     there is no such letter (any more)
--           pending  the entry is being handled, or waits for it: it must not be taken from a live worker
--           ahead    the group has yet to read the entry (it was made anew): it would be handled twice
--           trimmed  the entry is not retained any more
-- errors  NOGROUP
-- cost    O(letters · log pending), each letter (of a dry run also its entry) copied inside the server
local key, graveyard, group, dry = KEYS[1], KEYS[2], ARGV[1], ARGV[2] == '1'

local function position()
  local all = redis.pcall('XINFO', 'GROUPS', key)
  for _, flat in ipairs(all) do
    local info = {}
    for n = 1, #flat, 2 do info[flat[n]] = flat[n + 1] end
    if info.name == group then return info['last-delivered-id'] end
  end
end

local function later(one, other) -- digit by digit: a Lua number does not hold 64 bits
  local ms, seq = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  if ms == other_ms then ms, other_ms = seq, other_seq end
  if #ms ~= #other_ms then return #ms > #other_ms end
  return ms > other_ms
end

local read_up_to = position()
if not read_up_to then return redis.error_reply("NOGROUP no group '" .. group .. "' of '" .. key .. "'") end

local function redrive(letter_id)
  local letter = redis.call('XRANGE', graveyard, letter_id, letter_id)[1]
  if not letter then return 'gone' end
  local id = letter[2][1] == 'id' and letter[2][2] or ''
  if not string.match(id, '^%d+-%d+$') then return 'trimmed' end -- rstream did not write it
  local found = redis.pcall('XPENDING', key, group, id, id, 1)
  if found.err then return 'trimmed' end -- no id either, but one that is beyond 64 bits
  if found[1] and found[1][2] ~= '~again' then return 'pending' end
  if later(id, read_up_to) then return 'ahead' end
  if dry then return redis.call('XRANGE', key, id, id)[1] and 'again' or 'trimmed' end
  local claimed = redis.call('XCLAIM', key, group, '~again', 0, id, 'FORCE', 'RETRYCOUNT', 0, 'JUSTID')
  if not claimed[1] then return 'trimmed' end
  redis.call('XDEL', graveyard, letter_id)
  return 'again'
end

local verdicts = {}
for n = 3, #ARGV do verdicts[#verdicts + 1] = redrive(ARGV[n]) end
return verdicts
