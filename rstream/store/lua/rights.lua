#!lua flags=no-writes
-- Which commands the user that calls this may run on which keys, as Redis itself judges it. Nothing is run, nothing is
-- looked at: it works for a user who has no right to ask for rights, and on every node of a cluster.
--
-- KEYS    none: what is asked about may lie in any slot, for nothing is read
-- ARGV[1] KEYS  how many keys follow; of a command the argument "KEYS" stands for one of them
-- ARGV[2] ...   the keys, then commands: each is the number of its parts, and these
-- returns  for each command, a string with "1" where it is allowed for a key, "0" where not, in the order of the keys; ""
--          where this server does not know the command
-- cost     O(commands · keys), about a microsecond each
local keys, at, found = {}, 2, {}
for n = 1, tonumber(ARGV[1]) do keys[n], at = ARGV[at], at + 1 end
while ARGV[at] do
  local size, command, marks = tonumber(ARGV[at]), {}, {}
  local place
  for n = 1, size do
    command[n] = ARGV[at + n]
    if command[n] == 'KEYS' then place = n end
  end
  at = at + size + 1
  for n, key in ipairs(keys) do
    if place then command[place] = key end
    local known, may = pcall(redis.acl_check_cmd, unpack(command))
    if not known then marks = {} break end
    marks[n] = may and '1' or '0'
  end
  found[#found + 1] = table.concat(marks)
end
return found
