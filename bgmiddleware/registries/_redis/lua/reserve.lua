-- ARGV: now, place, until when, and for each group how many may run. Take a place in each group, or in none.
for group = FIRST_GROUP, #KEYS do
  -- Those whose lease ran out take no place; who comes to life again takes it again.
  redis.call('ZREMRANGEBYSCORE', KEYS[group], '-inf', string.format('%.17g', NOW))
  redis.call('ZREM', KEYS[group], ARGV[2])
  if redis.call('ZCARD', KEYS[group]) >= tonumber(ARGV[group - FIRST_GROUP + 4]) then
    return {'full'}
  end
end
for group = FIRST_GROUP, #KEYS do
  redis.call('ZADD', KEYS[group], ARGV[3], ARGV[2])
end
return {'ok'}
