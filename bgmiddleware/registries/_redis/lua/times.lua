-- ARGV: now, how many bytes of entries at most. Return the head of the times, and the last entries.
local count = tonumber(ARGV[2])
local head = redis.call('GETRANGE', TIMES, 0, 47)
if #head < 48 then
  return {'ok', '', ''}
end
local _, entries = struct.unpack('<dd', head)
local to = 48 + 8 * entries
return {'ok', head, redis.call('GETRANGE', TIMES, math.max(48, to - count), to - 1)}
