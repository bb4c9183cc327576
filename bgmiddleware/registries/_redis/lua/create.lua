-- ARGV: now, op, how long it may be pending, job, environ, max_output, body of the request. Store a new pending job, where
-- there is none but an expired one. Return the time of its coming, which its document does not have.
local now = string.format('%.17g', NOW)
if op == ARGV[2] then
  return {'ok', redis.call('HGET', RECORD, 'created') or now} -- the repetition of a call whose answer did not arrive
end
if expired then
  redis.call('DEL', RECORD)
elseif state then
  return {'taken', now}
end
redis.call('HSET', RECORD, 'state', 'pending', 'op', ARGV[2], 'until', string.format('%.17g', NOW + tonumber(ARGV[3])),
  'job', ARGV[4], 'environ', ARGV[5], 'max_output', ARGV[6], 'created', now)
redis.call('DEL', GONE, REQUEST, OUTPUT, BODY, WAKE, TIMES)
if ARGV[7] ~= '' then
  redis.call('SET', REQUEST, ARGV[7])
  redis.call('HSET', RECORD, 'request', #ARGV[7])
end
return {'ok', now}
