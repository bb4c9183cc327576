-- ARGV: now, 'output', offset, runner, note, the most bytes to fill. The bytes from the end to the offset are lost: let the
-- note take their place, as far as that is short; else drop them, and all that was in the ring. Return where it goes on.
local offset, note = tonumber(ARGV[3]), ARGV[5]
if state ~= 'running' or redis.call('HGET', RECORD, 'runner') ~= ARGV[4] then
  return {'fenced'}
end
if offset <= stop then
  return {'ok', stop} -- this is the repetition of a call whose answer did not arrive
end
redis.call('HSET', RECORD, 'lost', string.format('%.0f %.0f', stop, offset))
if offset - stop <= tonumber(ARGV[6]) then
  add(note .. string.rep(' ', offset - stop - #note - 1) .. (offset - stop > #note and '\n' or ''))
  return {'ok', stop}
end
head = math.min(head, stop)
if head > 0 then
  redis.call('SET', BYTES, redis.call('GETRANGE', BYTES, 0, head - 1))
else
  redis.call('DEL', BYTES)
end
stop, begin = offset, offset
redis.call('HSET', RECORD, 'head', head, 'floor', string.format('%.0f', stop))
add(note)
return {'ok', stop}
