-- base(marks, first): the bytes that were counted before the first entry; marks behind it go. upto(marks, id): the same of
-- any id, nil where none is known. behind(marks, score): the first mark at or after so many bytes, or END. first_of(stream):
-- the id of its first entry, or false. behind_first(stream, count, budget): the id behind so many entries, or END; nearer
-- where these have more bytes than that: whatever is gone through is copied, and the server stands still meanwhile; and
-- how many they are. Needs padded, floors. A mark is an entry's id, and its score the bytes counted before it.
local END = '18446744073709551615-18446744073709551615'

local function first_of(stream)
  local found = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  return found and found[1]
end

local function behind(marks, score)
  return redis.call('ZRANGE', marks, string.format('%.0f', score), '+inf', 'BYSCORE', 'LIMIT', 0, 1)[1] or END
end

local function upto(marks, id)
  local low, high, wanted, found = 0, redis.call('ZCARD', marks) - 1, padded(id), nil
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local mark = redis.call('ZRANGE', marks, middle, middle, 'WITHSCORES')
    if padded(mark[1]) <= wanted then
      found, low = tonumber(mark[2]), middle + 1
    else
      high = middle - 1
    end
  end
  return found
end

local function base(marks, first)
  local found = first and upto(marks, first)
  if found then redis.call('ZREMRANGEBYSCORE', marks, '-inf', string.format('(%.0f', found)) end
  return found
end

local function behind_first(stream, count, budget)
  local start, seen, copied = '-', 0, 0
  while seen < count and copied < budget do
    -- nobody knows the size of entries before they are copied: go by those before
    local step = seen == 0 and 4 or math.floor((budget - copied) / (copied / seen + 1))
    local page = redis.call('XRANGE', stream, start, '+', 'COUNT', math.max(1, math.min(step, 100, count - seen)))
    if #page == 0 then return END, count end
    for _, entry in ipairs(page) do
      for n = 2, #entry[2], 2 do copied = copied + #entry[2][n] end
    end
    seen, start = seen + #page, '(' .. page[#page][1]
  end
  return after(string.sub(start, 2)), seen
end
