#!lua flags=allow-oom
-- Have a group handle entries of one shard once more, in place: those that it has settled become pending for ~again,
-- where its workers find them within a second, with no attempt counted. What is pending already is left alone; what the
-- group has yet to read comes anyway. No other group notices, and nothing is published.
--
-- Each call says up to where it has given, so that none is given twice, whoever sends it again, and however late. The
-- same in a run that was killed and goes on: a run is what a replay is from its start to its end. So the pages of a
-- write have to come in turn: where Redis answered one that it is not ready, those behind it give nothing either.
--
-- With a token, no worker of an ordered group owns the shard meanwhile, and who does afterwards learns what is pending
-- before it reads on: so what is given comes before newer entries of its key. (It is held for moments only: a giver that
-- dies must not stop the group for long.)
--
-- KEYS[1] S                      stream
-- KEYS[2] S:owner:<group>        string
-- KEYS[3] S:epoch:<group>        string
-- KEYS[4] S:given:<group>:<name> hash, TTL: run, upto
-- ARGV[1] group
-- ARGV[2] token  by which the shard is held; "" = it is not
-- ARGV[3] hold   ms
-- ARGV[4] run    "" = only say what would be done
-- ARGV[5] ttl    ms
-- ARGV[6] after  the last id of the page before it in the same write, "" = it is the first
-- ARGV[7...]     ids, ascending; none = it is only held
-- returns {a letter an id: g given · b given, or found otherwise, by a call before · p pending · u unread · n not stored,
--         how many are pending for ~again}
-- errors  BUSY: the page before has given nothing yet; nothing was given
-- cost    O(ids · log pending + consumers); 500 ids take it 1 to 2 ms
-- include: padded
-- include: position
local key, marker, group, token, run = KEYS[1], KEYS[4], ARGV[1], ARGV[2], ARGV[4]
local dry = run == ''

local function waiting()
  local told = redis.pcall('XPENDING', key, group)
  for _, each in ipairs(told[4] or {}) do
    if each[1] == '~again' then return tonumber(each[2]) end
  end
  return 0
end

local read_up_to = redis.call('EXISTS', key) == 1 and position(key, group)
if not read_up_to then -- a shard that is not there any more, or one that a worker will make the group anew in
  return {string.rep(redis.call('EXISTS', key) == 1 and 'u' or 'n', #ARGV - 6), 0}
end

local before = ''
if token ~= '' and redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then
  redis.call('SET', KEYS[2], token, 'PX', ARGV[3])
end
if #ARGV < 7 then return {'', 0} end
if not dry then
  local stored = redis.call('HMGET', marker, 'run', 'upto')
  if stored[1] == run then before = stored[2] end
  if ARGV[6] ~= '' and before < padded(ARGV[6]) then return redis.error_reply('BUSY with the page before') end
end

local verdicts, wanted = {}, {}
for n = 7, #ARGV do
  local id = ARGV[n]
  local rank = padded(id)
  local verdict
  if rank <= before then
    verdict = 'b'
  elseif rank > read_up_to then
    verdict = 'u'
  elseif redis.call('XPENDING', key, group, id, id, 1)[1] then
    verdict = 'p'
  elseif dry then
    verdict = redis.call('XRANGE', key, id, id)[1] and 'g' or 'n'
  else
    verdict = 'n'
    wanted[#wanted + 1] = id
  end
  verdicts[n - 6] = verdict
end

if wanted[1] then
  local given = {}
  wanted[#wanted + 1] = 'FORCE'
  wanted[#wanted + 1] = 'RETRYCOUNT'
  wanted[#wanted + 1] = '0'
  wanted[#wanted + 1] = 'JUSTID'
  for _, id in ipairs(redis.call('XCLAIM', key, group, '~again', 0, unpack(wanted))) do given[id] = true end
  for n = 7, #ARGV do
    if given[ARGV[n]] then verdicts[n - 6] = 'g' end
  end
end

if not dry then
  local last = padded(ARGV[#ARGV])
  redis.call('HSET', marker, 'run', run, 'upto', last > before and last or before)
  redis.call('PEXPIRE', marker, ARGV[5])
end
return {table.concat(verdicts), waiting()}
