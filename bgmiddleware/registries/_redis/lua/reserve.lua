-- ARGV: now, place, until when, for each group how many may run, and the key. Take a place in each group, or in none.
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
-- Whoever dies before it has filed the job as running: it is looked at when the lease runs out. Should this fail, it is
-- looked at when it would have waited for too long: no reason to refuse a claim.
local key = ARGV[#ARGV]
local due = tonumber(redis.pcall('ZSCORE', DUE, key))
if due and tonumber(ARGV[3]) < due then
  redis.pcall('ZADD', DUE, ARGV[3], key)
end
return {'ok'}
