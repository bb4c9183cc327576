-- ARGV: now. Know no more that the job was there and expired; by now the key may be a new job's.
if state and not expired then
  return {'ok', 0}
end
redis.call('DEL', RECORD, REQUEST, OUTPUT, BODY, TIMES)
return {'ok', redis.call('DEL', GONE)}
