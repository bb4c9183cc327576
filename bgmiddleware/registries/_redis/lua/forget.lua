-- ARGV: now, 'expired' to remember it as that or '' to know nothing of it. Forget a job that does not run; for the
-- first, only one that has ended and is not kept: by now the key may be a new job's, or somebody kept it.
if state == 'running' or (ARGV[2] == 'expired' and (state == 'pending' or limit == '')) then
  return {'ok', 0}
end
redis.call('DEL', RECORD, REQUEST, OUTPUT, BODY, TIMES)
if ARGV[2] ~= 'expired' then
  redis.call('DEL', GONE)
end
if state == 'pending' then
  wake_for_good() -- of one that has ended, nobody waits for more
end
return {'ok', 1}
