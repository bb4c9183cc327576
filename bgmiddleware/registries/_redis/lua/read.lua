-- ARGV: now, channel, offset, limit. Return where the bytes begin, and the bytes.
local offset, most_bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
local to = stop
if offset >= head and offset < dropped then
  offset = dropped
elseif offset < head and dropped > head then
  to = head
end
return {'ok', offset, kept(offset, math.min(to, offset + most_bytes))}
