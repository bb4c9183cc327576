-- ARGV: now. Behind the KEYS: the counts of minutes. Return them, and how many wait and run now.
local counts = {}
for minute = FIRST_GROUP, #KEYS do
  counts[#counts + 1] = redis.call('HGETALL', KEYS[minute])
end
return {'ok', string.format('%.17g', NOW), redis.call('ZCARD', PENDING), redis.call('ZCARD', RUNNING), counts}
