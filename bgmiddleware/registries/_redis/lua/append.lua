-- ARGV: now, channel, offset, data, runner, the most bytes that the channel may have; then offsets, and when the output came
-- up to there, in milliseconds.
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
add(data)
if ARGV[7] then
  add_times()
end
return {'ok', stop}
