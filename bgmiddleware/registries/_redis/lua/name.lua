-- ARGV: now, key, milliseconds. Behind the KEYS: a name. It has the key of the last job that was given it, with a '?'
-- behind it until the record of that is there. Say that it is, and keep the name for so long, if it is still this job's.
local key, NAME = ARGV[2], KEYS[FIRST_GROUP]
local holder = redis.call('GET', NAME)
if holder == key then
  redis.call('PEXPIRE', NAME, ARGV[3]) -- takes no memory: see write.lua
elseif holder == key .. '?' then
  redis.call('SET', NAME, key, 'PX', ARGV[3])
else
  return {'lost'}
end
return {'ok'}
