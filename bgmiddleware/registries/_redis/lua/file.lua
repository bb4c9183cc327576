-- ARGV: now, key, 'pending', 'running', 'ended', 'kept' or 'gone', when to look at it, 'anew' if it comes only now,
-- its place in its groups, until when it takes that, the rank of its priority, its process. File a job as what its record
-- says. Behind the KEYS: each of its groups, then who waits of each.
local key, where, at, place, process = ARGV[2], ARGV[3], ARGV[4], ARGV[6], ARGV[9]
-- What takes no memory comes first: see write.lua.
redis.call('ZREM', PENDING, key)
redis.call('ZREM', QUEUE, key)
redis.call('ZREM', RUNNING, key)
redis.call('ZREM', DUE, key)
redis.call('ZREM', ENDED, key)
if where ~= 'kept' then
  redis.call('ZREM', KEPT, key)
end
if process ~= '' then
  redis.call('ZREM', HELD, process .. SEPARATOR .. key)
end
local first_waits = FIRST_GROUP + (#KEYS - FIRST_GROUP + 1) / 2
for waits = first_waits, #KEYS do
  redis.call('ZREM', KEYS[waits], key)
end
if where == 'gone' or ARGV[5] == 'anew' then
  redis.call('ZREM', EXPIRED, key)
  redis.call('ZREM', JOBS, key)
end
if where ~= 'gone' then
  local number = redis.call('ZSCORE', JOBS, key)
  if not number then
    number = redis.call('INCR', LAST)
    redis.call('ZADD', JOBS, number, key)
  end
  if where == 'ended' then
    redis.call('ZADD', ENDED, at, key)
  elseif where == 'kept' then
    redis.call('ZADD', KEPT, 'NX', 0, key)
    redis.call('ZADD', DUE, at, key)
  else
    redis.call('ZADD', where == 'pending' and PENDING or RUNNING, number, key)
    redis.call('ZADD', DUE, at, key)
  end
  if where == 'pending' then
    redis.call('ZADD', QUEUE, turn(ARGV[8], number), key)
    for waits = first_waits, #KEYS do
      redis.call('ZADD', KEYS[waits], number, key)
    end
    if process ~= '' then
      redis.call('ZADD', HELD, 0, process .. SEPARATOR .. key)
    end
  end
end
for group = FIRST_GROUP, first_waits - 1 do
  if where == 'running' then
    redis.call('ZADD', KEYS[group], ARGV[7], place)
  else
    redis.call('ZREM', KEYS[group], place)
  end
end
return {'ok'}
