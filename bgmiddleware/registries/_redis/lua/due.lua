-- ARGV: now, limit. Drop what expired; return how many those were, and the keys of what else is due.
local now, most = string.format('%.17g', NOW), tonumber(ARGV[2])
local expired = redis.call('ZRANGEBYSCORE', ENDED, '-inf', now, 'LIMIT', 0, most)
for _, key in ipairs(expired) do
  redis.call('ZREM', ENDED, key)
  redis.call('ZREM', JOBS, key)
end
return {'ok', #expired, redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, most - #expired)}
