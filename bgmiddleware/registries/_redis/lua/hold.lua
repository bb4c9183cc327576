-- ARGV: now, process, how long it is there for sure. Return until when that is.
local till = string.format('%.17g', NOW + tonumber(ARGV[3]))
redis.call('ZADD', PROCESSES, till, ARGV[2])
return {'ok', till}
