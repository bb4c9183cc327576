-- ARGV: now, who asks. True for the first.
redis.call('HSETNX', RECORD, 'cookies', ARGV[2])
return {'ok', redis.call('HGET', RECORD, 'cookies') == ARGV[2] and 1 or 0}
