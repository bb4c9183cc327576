-- ARGV: now, limit, how many may be remembered to have expired. Drop what expired; return how many those were, the keys
-- of what else is due, and of what is not to be remembered any more.
local now, most = string.format('%.17g', NOW), tonumber(ARGV[2])
local expired = redis.call('ZRANGEBYSCORE', ENDED, '-inf', now, 'LIMIT', 0, most)
for _, key in ipairs(expired) do
  redis.call('ZREM', ENDED, key)
  redis.call('ZREM', JOBS, key)
  redis.call('ZADD', EXPIRED, now, key)
end
local forgotten, over = {}, redis.call('ZCARD', EXPIRED) - tonumber(ARGV[3])
if over > 0 then
  forgotten = redis.call('ZRANGE', EXPIRED, 0, math.min(over, 1000) - 1)
  redis.call('ZREM', EXPIRED, unpack(forgotten))
end
-- Those that wait in the memory of a process that is gone are due, if they are pending still.
local room = most - #expired
for _, process in ipairs(redis.call('ZRANGEBYSCORE', PROCESSES, '-inf', now, 'LIMIT', 0, 10)) do
  local held = redis.call('ZRANGEBYLEX', HELD, '[' .. process .. SEPARATOR, '(' .. process .. '\1', 'LIMIT', 0, room)
  for _, name in ipairs(held) do
    redis.call('ZREM', HELD, name)
    redis.call('ZADD', DUE, 'XX', now, name:sub(#process + 2))
  end
  room = room - #held
  if room <= 0 then
    break
  end
  redis.call('ZREM', PROCESSES, process)
end
return {'ok', #expired, redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, most - #expired), forgotten}
