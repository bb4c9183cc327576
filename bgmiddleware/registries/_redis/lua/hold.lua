-- ARGV: now, holder, how long it is there for sure. Return until when that is.
local till = string.format('%.17g', NOW + tonumber(ARGV[3]))
redis.call('ZADD', HOLDERS, till, ARGV[2])
return {'ok', till}
