-- ARGV: now, op, until, job, environ, max_output. Store a new pending job, where there is none but an expired one.
if op == ARGV[2] then
  return {'ok'} -- this is the repetition of a call whose answer did not arrive
end
if expired then
  redis.call('DEL', RECORD)
elseif state then
  return {'taken'}
end
redis.call('HSET', RECORD, 'state', 'pending', 'op', ARGV[2], 'until', ARGV[3], 'job', ARGV[4], 'environ', ARGV[5],
  'max_output', ARGV[6])
redis.call('DEL', GONE, REQUEST, OUTPUT, BODY, WAKE, TIMES)
return {'ok'}
