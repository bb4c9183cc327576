-- ARGV: now, key, max_jobs, how long it may be pending, the rank of its priority, its holder, and how long that is there
-- for sure. Take a place for a new job. Return the time, and the jobs that made room.
local now, key, most, holder = string.format('%.17g', NOW), ARGV[2], tonumber(ARGV[3]), ARGV[6]
if holder ~= '' then
  redis.call('ZADD', HOLDERS, string.format('%.17g', NOW + tonumber(ARGV[7])), holder)
end
if redis.call('ZSCORE', JOBS, key) then
  return {'known', now}
end
local gone = {}
while redis.call('ZCARD', JOBS) >= most do
  -- A few at a time: max_jobs may have been a larger number yesterday.
  local first = #gone < 100 and redis.call('ZRANGE', ENDED, 0, 0)[1]
  if not first then
    return {'full', now, unpack(gone)}
  end
  redis.call('ZREM', ENDED, first)
  redis.call('ZREM', JOBS, first)
  gone[#gone + 1] = first
end
local number = redis.call('INCR', LAST)
redis.call('ZADD', JOBS, number, key)
redis.call('ZADD', PENDING, number, key)
redis.call('ZADD', QUEUE, turn(ARGV[5], number), key)
redis.call('ZADD', DUE, string.format('%.17g', NOW + tonumber(ARGV[4])), key)
if holder ~= '' then
  redis.call('ZADD', HELD, 0, holder .. SEPARATOR .. key)
end
return {'ok', now, unpack(gone)}
