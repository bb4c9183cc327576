-- ARGV: now, op of the record that was read, new op, state, until, runner, place, job, and for an ended state:
-- milliseconds to keep it, milliseconds to remember it. Replace the record, if nobody else did since it was read.
if op == ARGV[3] then
  return {'ok'} -- this is the repetition of a call whose answer did not arrive
end
if op ~= ARGV[2] then
  return {'changed'}
end
-- A server that is full refuses what could take memory, but not in the middle of a script: so what takes none comes
-- first. How a job stands is always written down.
redis.call('PERSIST', RECORD)
redis.call('HSET', RECORD, 'op', ARGV[3], 'state', ARGV[4], 'until', ARGV[5], 'runner', ARGV[6], 'place', ARGV[7],
  'job', ARGV[8])
if ARGV[9] then
  redis.call('HDEL', RECORD, 'environ', 'request', 'runner', 'place')
  redis.call('DEL', REQUEST)
  for _, key in ipairs({RECORD, OUTPUT, BODY, TIMES}) do
    redis.call('PEXPIRE', key, ARGV[9])
  end
  redis.call('SET', GONE, '', 'PX', ARGV[10])
  wake_for_good()
end
return {'ok'}
