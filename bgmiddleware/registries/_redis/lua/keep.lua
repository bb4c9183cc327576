-- ARGV: now, key, its bytes, how many jobs may be kept, how many bytes of all of them, and in how many seconds to look
-- whether its record says that it is. Take a place for an ended job, if there is room, or it has one.
local key, sum = ARGV[2], tonumber(ARGV[3])
if not redis.call('ZSCORE', KEPT, key) then
  local kept = redis.call('ZRANGE', KEPT, 0, -1, 'WITHSCORES')
  for at = 2, #kept, 2 do
    sum = sum + tonumber(kept[at])
  end
  if #kept / 2 >= tonumber(ARGV[4]) or sum > tonumber(ARGV[5]) then
    return {'full'}
  end
  redis.call('ZADD', KEPT, ARGV[3], key)
end
redis.call('ZADD', DUE, string.format('%.17g', NOW + tonumber(ARGV[6])), key)
return {'ok'}
