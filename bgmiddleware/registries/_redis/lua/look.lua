-- Return all that is known of a job but its bytes, and the time.
local names = {'op', 'job', 'environ', 'output', 'body', 'max_output', 'place', 'head', 'floor', 'lost',
  'created', 'until'}
return {'ok', string.format('%.17g', NOW), unpack(redis.call('HMGET', RECORD, unpack(names)))}
