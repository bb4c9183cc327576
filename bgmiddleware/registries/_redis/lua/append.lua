-- ARGV: now, channel, offset, data, runner, the most bytes that the channel may have.
local offset, data, size = tonumber(ARGV[3]), ARGV[4], #ARGV[4]
if CHANNEL == 'request' then
  if state ~= 'pending' or NOW >= tonumber(limit) then
    return {'fenced'}
  end
elseif state ~= 'running' or redis.call('HGET', RECORD, 'runner') ~= ARGV[5] then
  return {'fenced'}
end
if offset ~= stop then
  -- Whether these bytes are what was added there, as far as it is still kept.
  local to = offset + size
  if offset < 0 or to > stop then
    return {'offset', stop}
  end
  local first, last = math.max(offset, math.min(to, head)), math.max(offset, math.min(to, dropped))
  if kept(offset, first) ~= data:sub(1, first - offset) or kept(last, to) ~= data:sub(last - offset + 1) then
    return {'offset', stop}
  end
  return {'ok', stop}
end
if CHANNEL ~= 'output' and stop + size > tonumber(ARGV[6]) then
  return {'full'}
end
if size == 0 then
  return {'ok', stop}
end
-- Of a chunk that is larger than the ring only the end is written: the rest would be overwritten at once.
local at, skip = 0, math.max(0, math.min(size, head - stop))
while at < size do
  if at == skip then
    at = math.max(at, size - ring)
  end
  local position, room = place(stop + at)
  local part = math.min(room, size - at)
  redis.call('SETRANGE', BYTES, position, data:sub(at + 1, at + part))
  at = at + part
end
stop = stop + size
redis.call('HSET', RECORD, CHANNEL, string.format('%.0f', stop))
if CHANNEL == 'output' then
  redis.call('XADD', WAKE, 'MAXLEN', 1, string.format('%.0f-1', stop), 'e', '')
end
return {'ok', stop}
