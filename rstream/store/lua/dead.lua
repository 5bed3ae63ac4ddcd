#!lua flags=no-writes
-- Look through the dead letters of one shard: the heads of those that match (payloads stay here), or how many of
-- each reason. A page ends after a number of matches, of letters looked at, or of bytes copied to look at them.
--
-- KEYS[1] S:dead:<group>  stream
-- ARGV[1] start    id, or "(id" to page on
-- ARGV[2] end      id
-- ARGV[3] limit    matches
-- ARGV[4] look     letters looked at
-- ARGV[5] budget   bytes
-- ARGV[6] want     heads | counts
-- ARGV[7] filters  msgpack array of {reason, key, text in the error, letter ids, entry ids}; "" or no ids = any
-- returns {found, last id looked at or "" where there is no more, end: for further pages, the newest id there was};
--         found = heads: {{id, entry id, reason, error (cut), attempts, worker, key or false, bytes}, ...},
--         or counts: {reason, count, ...}
-- cost    O(letters looked at), each copied inside the server
local key, at, stop = KEYS[1], ARGV[1], ARGV[2]
local left, look, budget = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local reason, lane, text, letters, entries = unpack(cmsgpack.unpack(ARGV[7]))
local ERROR_MAX, STEP_MAX = 1000, 64
local found, counts = {}, {}
text = string.lower(text)

local function set(list)
  local all = {}
  for _, id in ipairs(list) do all[id] = true end
  return all
end

local named = #letters + #entries > 0
letters, entries = set(letters), set(entries)

-- A letter's own fields come first and end with `worker`; what follows is the entry's, whatever its fields are called.
local function head_of(letter)
  local own, entry, bytes, inside = {}, {}, 0, false
  for n = 1, #letter[2], 2 do
    local name, value = letter[2][n], letter[2][n + 1]
    bytes = bytes + #name + #value
    if inside then
      entry[name] = value
    else
      own[name] = value
      inside = name == 'worker'
    end
  end
  return {
    letter[1], own.id or '', own.reason or '', string.sub(own.error or '', 1, ERROR_MAX), own.attempts or '',
    own.worker or '', entry.k or false, bytes,
  }, own.error or ''
end

local function matches(head, cause)
  return (reason == '' or head[3] == reason)
    and (lane == '' or head[7] == lane)
    and (text == '' or string.find(string.lower(cause), text, 1, true))
    and (not named or letters[head[1]] or entries[head[2]])
end

local function answer(last)
  if ARGV[6] == 'counts' then
    for name, count in pairs(counts) do
      found[#found + 1] = name
      found[#found + 1] = count
    end
  end
  return {found, last, stop}
end

if string.sub(at, 1, 1) ~= '(' then -- the first page says where the last one ends, however many die meanwhile
  local newest = redis.call('XREVRANGE', key, stop, at, 'COUNT', 1)[1]
  if not newest then return answer('') end
  stop = newest[1]
end

local seen, copied = 0, 0
while true do
  -- nobody knows the size of letters before they are copied: go by those before
  local step = seen == 0 and 4 or math.floor((budget - copied) / (copied / seen + 1))
  step = math.max(1, math.min(step, STEP_MAX, look - seen))
  local page = redis.call('XRANGE', key, at, stop, 'COUNT', step)
  for _, letter in ipairs(page) do
    local head, cause = head_of(letter)
    seen, copied = seen + 1, copied + head[8]
    if matches(head, cause) then
      left = left - 1
      if ARGV[6] == 'heads' then found[#found + 1] = head end
      counts[head[3]] = (counts[head[3]] or 0) + 1
      if left <= 0 then return answer(letter[1]) end
    end
  end
  if #page < step then return answer('') end
  at = '(' .. page[#page][1]
  if seen >= look or copied >= budget then return answer(page[#page][1]) end
end
