-- made(stream): make an empty stream where there is none.
local function made(stream)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, '~', '0', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', stream, '~')
  end
end
