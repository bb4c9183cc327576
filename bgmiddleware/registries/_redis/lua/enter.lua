-- ARGV: now, key, max_jobs, how long it may be pending, the rank of its priority; for a job with a name: what that may
-- hold now, and for how many milliseconds it is taken; the process that it waits in, and how long that is there for sure;
-- and how many names it has, 1 or 0. Behind the KEYS: the name, see name.lua, and who waits of each of its groups. Take a
-- place for a new job. Return the time, and the jobs that made room.
local now, key, most = string.format('%.17g', NOW), ARGV[2], tonumber(ARGV[3])
local process = ARGV[8]
if process ~= '' then
  redis.call('ZADD', PROCESSES, string.format('%.17g', NOW + tonumber(ARGV[9])), process)
end
if redis.call('ZSCORE', JOBS, key) then
  return {'known', now}
end
local names = tonumber(ARGV[10])
local NAME = names > 0 and KEYS[FIRST_GROUP]
local holder = NAME and redis.call('GET', NAME)
if holder and holder ~= ARGV[6] then
  return {'named', now, holder}
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
  redis.call('ZADD', EXPIRED, now, first)
  gone[#gone + 1] = first
end
if NAME then
  redis.call('SET', NAME, key .. '?', 'PX', ARGV[7])
end
redis.call('ZREM', EXPIRED, key)
local number = redis.call('INCR', LAST)
redis.call('ZADD', JOBS, number, key)
redis.call('ZADD', PENDING, number, key)
redis.call('ZADD', QUEUE, turn(ARGV[5], number), key)
redis.call('ZADD', DUE, string.format('%.17g', NOW + tonumber(ARGV[4])), key)
if process ~= '' then
  redis.call('ZADD', HELD, 0, process .. SEPARATOR .. key)
end
for group = FIRST_GROUP + names, #KEYS do
  redis.call('ZADD', KEYS[group], number, key)
  redis.call('PEXPIRE', KEYS[group], ARGV[7])
end
return {'ok', now, unpack(gone)}
