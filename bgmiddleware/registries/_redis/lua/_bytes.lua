-- Where the bytes of a channel lie. Byte n lies at position n of its string. Only of the output, that is true while
-- n < head; behind that is a ring of `ring` bytes: so the head stays, and the ring holds the tail.
local CHANNEL = ARGV[2]
local BYTES = ({request = REQUEST, output = OUTPUT, body = BODY})[CHANNEL]
local written, most = unpack(redis.call('HMGET', RECORD, CHANNEL, 'max_output'))
local stop = tonumber(written or 0) -- the end of the channel
local head, ring = math.huge, 0
if CHANNEL == 'output' then
  head = math.floor(tonumber(most) / 2)
  ring = tonumber(most) - head
end
local dropped = math.max(head, stop - ring) -- [head, dropped) is not kept any more

-- Return the position of the byte at an offset, and how many follow it in a row.
local function place(offset)
  if offset < head then
    return offset, head - offset
  end
  local within = (offset - head) % ring
  return head + within, ring - within
end

-- Return what is kept from an offset to another, neither of them in what was dropped.
local function kept(from, to)
  local parts = {}
  while from < to do
    local position, room = place(from)
    local size = math.min(room, to - from)
    parts[#parts + 1] = redis.call('GETRANGE', BYTES, position, position + size - 1)
    from = from + size
  end
  return table.concat(parts)
end

-- Of a job that a server evicted in part, say so: an empty piece would say that this is the end.
if redis.call('STRLEN', BYTES) ~= math.min(stop, head + ring) then
  return {'damaged'}
end
