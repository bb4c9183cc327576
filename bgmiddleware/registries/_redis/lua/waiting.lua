-- Behind the KEYS: who waits of a group. Return how many of them are pending: who died may have filed none of the rest.
local WAITS, count = KEYS[FIRST_GROUP], 0
for _, key in ipairs(redis.call('ZRANGE', WAITS, 0, -1)) do
  if redis.call('ZSCORE', PENDING, key) then
    count = count + 1
  else
    redis.call('ZREM', WAITS, key)
  end
end
return {'ok', count}
