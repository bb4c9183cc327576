-- ARGV: now, path, how many paths at most, the path of what is one too many, the oldest minute that is kept, this minute,
-- milliseconds to keep it; then names and numbers. Behind the KEYS: the paths that are counted, by their last minute; and
-- the counts of this minute, a hash. Count, and note how many wait and run. Without a path, only the latter.
local PATHS, COUNTS, path = KEYS[FIRST_GROUP], KEYS[FIRST_GROUP + 1], ARGV[2]
if redis.call('HSET', COUNTS, 'waiting', redis.call('ZCARD', PENDING), 'running', redis.call('ZCARD', RUNNING)) > 0 then
  redis.call('PEXPIRE', COUNTS, ARGV[7]) -- the first one of this minute
end
if path == '' then
  return {'ok'}
end
local other, last = ARGV[4], redis.call('ZSCORE', PATHS, path)
if path ~= other and not last and redis.call('ZCARD', PATHS) >= tonumber(ARGV[3]) - 1 then
  redis.call('ZREMRANGEBYSCORE', PATHS, '-inf', '(' .. ARGV[5])
  if redis.call('ZCARD', PATHS) >= tonumber(ARGV[3]) - 1 then
    path = other
  end
end
if path ~= other and last ~= ARGV[6] then
  redis.call('ZADD', PATHS, ARGV[6], path)
  redis.call('PEXPIRE', PATHS, ARGV[7])
end
for argument = 8, #ARGV, 2 do
  local name, number = ARGV[argument] .. ' ' .. path, ARGV[argument + 1]
  if not ARGV[argument]:find('_longest', 1, true) then
    redis.call('HINCRBY', COUNTS, name, number)
  elseif tonumber(number) > tonumber(redis.call('HGET', COUNTS, name) or 0) then
    redis.call('HSET', COUNTS, name, number)
  end
end
return {'ok'}
