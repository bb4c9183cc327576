-- Where the bytes of a channel lie. Byte n lies at position n of its string. Only of the output, that is true while
-- n < head; behind that is a ring of `ring` bytes: so the head stays, and the ring holds the tail. Where the server once
-- went back and bytes are missing, the ring begins behind those, at `floor`.
local CHANNEL = ARGV[2]
local BYTES = ({request = REQUEST, output = OUTPUT, body = BODY})[CHANNEL]
local written, most, first, floor = unpack(redis.call('HMGET', RECORD, CHANNEL, 'max_output', 'head', 'floor'))
local stop = tonumber(written or 0) -- the end of the channel
local head, ring = math.huge, 0
if CHANNEL == 'output' then
  head = tonumber(first or math.floor(tonumber(most) / 2))
  ring = tonumber(most) - head
end
local begin = CHANNEL == 'output' and tonumber(floor or head) or head -- of the ring
local dropped = math.max(begin, stop - ring) -- [head, dropped) is not kept any more

-- Return the position of the byte at an offset, and how many follow it in a row.
local function place(offset)
  if offset < head then
    return offset, head - offset
  end
  local within = (offset - begin) % ring
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

-- Write bytes at the end, and wake who waits for them.
local function add(bytes)
  local size = #bytes
  -- Of what is larger than the ring only the end is written: the rest would be overwritten at once.
  local at, skip = 0, math.max(0, math.min(size, head - stop))
  while at < size do
    if at == skip then
      at = math.max(at, size - ring)
    end
    local position, room = place(stop + at)
    local part = math.min(room, size - at)
    redis.call('SETRANGE', BYTES, position, bytes:sub(at + 1, at + part))
    at = at + part
  end
  stop = stop + size
  redis.call('HSET', RECORD, CHANNEL, string.format('%.0f', stop))
  if CHANNEL == 'output' then
    redis.call('XADD', WAKE, 'MAXLEN', 1, string.format('%.0f-1', stop), 'e', '')
  end
end

-- Of a job that a server evicted in part, say so: an empty piece would say that this is the end.
local length = stop <= head and stop or head + math.min(stop - begin, ring)
if redis.call('STRLEN', BYTES) ~= length then
  return {'damaged'}
end
