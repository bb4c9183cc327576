-- ARGV: now, op of the record that was read, new op, state, until, runner, place, job, the least bytes of output and of
-- body, and for an ended state: milliseconds to keep it or '' where it has no TTL, milliseconds to remember it, and 1
-- where its request is kept. Replace the record, if nobody else
-- did since it was read; not where there are fewer bytes: then return the end of those.
if op == ARGV[3] then
  return {'ok'} -- this is the repetition of a call whose answer did not arrive
end
if op ~= ARGV[2] then
  return {'changed'}
end
for at, channel in ipairs({'output', 'body'}) do
  local stop = tonumber(redis.call('HGET', RECORD, channel) or 0)
  if stop < tonumber(ARGV[8 + at]) then
    return {'short', stop}
  end
end
-- A server that is full refuses what could take memory, but not in the middle of a script: so what takes none comes
-- first. How a job stands is always written down.
redis.call('PERSIST', RECORD)
redis.call('HSET', RECORD, 'op', ARGV[3], 'state', ARGV[4], 'until', ARGV[5], 'runner', ARGV[6], 'place', ARGV[7],
  'job', ARGV[8])
redis.call('HDEL', RECORD, 'created')
if ARGV[11] then
  redis.call('HDEL', RECORD, 'runner', 'place')
  if ARGV[13] ~= '1' then
    redis.call('HDEL', RECORD, 'environ', 'request')
    redis.call('DEL', REQUEST)
  end
  for _, key in ipairs({RECORD, REQUEST, OUTPUT, BODY, TIMES}) do
    if ARGV[11] == '' then
      redis.call('PERSIST', key)
    else
      redis.call('PEXPIRE', key, ARGV[11])
    end
  end
  if ARGV[11] == '' then
    redis.call('DEL', GONE)
  else
    redis.call('SET', GONE, '', 'PX', ARGV[12])
  end
  if state == 'pending' or state == 'running' then -- else it has ended before, and all are awake
    wake_for_good()
  end
end
return {'ok'}
