-- hold(owner, epoch, token): where a group is (or was) ordered, keep its workers from owning the shard, so that none of
-- them reads or takes over anything there, until the token is disowned or 30 s have passed. Who owned it finds out.
local function hold(owner, epoch, token)
  if redis.call('EXISTS', owner, epoch) > 0 then redis.call('SET', owner, token, 'PX', 30000) end
end
