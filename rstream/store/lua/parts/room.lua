-- room(stream, size, marks, count, bytes, spare): whether so much more goes into a shard that has limits: nil where it has
-- none, else a tally: full · level (unprocessed, in 1/1000 of the limit) · add(id, bytes) for each entry · close() at the
-- end. What all groups have settled is trimmed for it, as far as it has to be. spare: beyond the limit, a part of it.
-- Needs padded, floors, base. Cost: one HMGET; where something has to be trimmed, or the groups are behind, O(groups +
-- log marks + what is trimmed) more.
local WALK = 1000 -- entries
local STEP_BYTES = 8 * 1024 * 1024 -- that go at once

local function later(one, other)
  if not one or not other then return one or other end
  return padded(one) > padded(other) and one or other
end

local function earlier(one, other)
  return later(one, other) == one and other or one
end

local function room(stream, size, marks, count, bytes, spare)
  local stored = redis.call('HMGET', size, 'total', 'mark', 'grain', 'maxlen', 'maxbytes', 'soft', 'base', 'floor')
  if not stored[1] then return nil end
  local total, mark, grain = tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3])
  local maxlen, maxbytes = tonumber(stored[4]) or math.huge, tonumber(stored[5]) or math.huge
  local soft, begun, floor = tonumber(stored[6]), tonumber(stored[7]), tonumber(stored[8])
  local length = redis.call('XLEN', stream)
  if length == 0 and redis.call('EXISTS', stream) == 0 then return nil end
  local tally = {full = false, level = 0}

  local function too_much(part)
    return length + count > maxlen * part or total - begun + bytes > maxbytes * part
  end

  local function level()
    local left = total - floor
    local entries = length * math.min(1, left / math.max(1, total - begun))
    return math.max((left + bytes) / maxbytes, (entries + count) / maxlen)
  end

  local function tidy()
    local lowest
    for _, group in ipairs(floors(stream)) do lowest = lowest and earlier(lowest, group[2]) or group[2] end
    begun = base(marks, first_of(stream)) or (length == 0 and total or begun)
    local target
    local over = length + count - maxlen
    if over > 0 then target = behind_first(stream, math.min(over, WALK), STEP_BYTES) end
    over = total - begun + bytes - maxbytes
    if over > 0 then target = later(target, behind(marks, begun + math.min(over, STEP_BYTES))) end
    if target then
      if lowest then target = earlier(target, lowest) end
      if redis.call('XTRIM', stream, 'MINID', target) > 0 then
        length = redis.call('XLEN', stream)
        begun = base(marks, first_of(stream)) or (length == 0 and total or begun)
      end
    end
    floor = lowest and math.max(begun, upto(marks, lowest) or begun) or total
    redis.call('HSET', size, 'base', string.format('%.0f', begun), 'floor', string.format('%.0f', floor))
  end

  if too_much(1) or level() * 1000 > soft then
    tidy()
    tally.full = length > 0 and too_much(1 + spare)
    tally.level = math.floor(math.min(1, level()) * 1000)
    if tally.level <= soft then tally.level = 0 end
  end

  function tally.add(id, more)
    if total - mark >= grain then
      redis.call('ZADD', marks, string.format('%.0f', total), id)
      mark = total
    end
    total = total + more
  end

  function tally.close()
    redis.call('HSET', size, 'total', string.format('%.0f', total), 'mark', string.format('%.0f', mark))
  end

  return tally
end
