-- When the output came. The layout is that of registries/_times.py, and what is done is what Head.added and thinned() do.
local MOST_TIMES, RESOLUTION, LARGEST, HEAD_BYTES, HEAD = 65536, 50, 4294967295, 48, '<dddddd'

local function thinned(gap, count)
  local data = redis.call('GETRANGE', TIMES, HEAD_BYTES, HEAD_BYTES + 8 * count - 1)
  local ends, ats, at_end, at = {}, {}, 0, 0
  for number = 1, count do
    local size, pause = struct.unpack('<I4I4', data, 8 * number - 7)
    at_end, at = at_end + size, at + pause
    ends[number], ats[number] = at_end, at
  end
  while count > MOST_TIMES / 2 do
    gap = gap * 2
    local kept = 1
    for number = 2, count do
      if kept < 2 or ats[number] - ats[kept - 1] >= gap or ends[number] - ends[kept - 1] > LARGEST then
        kept = kept + 1
      end
      ends[kept], ats[kept] = ends[number], ats[number]
    end
    count = kept
  end
  local entries, before_end, before_at = {}, 0, 0
  for number = 1, count do
    entries[number] = struct.pack('<I4I4', ends[number] - before_end, ats[number] - before_at)
    before_end, before_at = ends[number], ats[number]
  end
  local head = struct.pack(HEAD, gap, count, ends[count], ats[count], ends[count - 1], ats[count - 1])
  redis.call('SET', TIMES, head .. table.concat(entries))
end

-- Add what ARGV has from 7 on.
local function add_times()
  local stored = redis.call('GETRANGE', TIMES, 0, HEAD_BYTES - 1)
  local gap, count, last_end, last_at, before_end, before_at = RESOLUTION, 0, 0, 0, 0, 0
  if #stored == HEAD_BYTES then
    gap, count, last_end, last_at, before_end, before_at = struct.unpack(HEAD, stored)
  end
  local from, entries = count, {} -- what is written from the entry of that number on
  for argument = 7, #ARGV, 2 do
    local to, at = tonumber(ARGV[argument]), math.max(tonumber(ARGV[argument + 1]), last_at)
    if to > last_end then
      if count > 1 and at - before_at < gap and to - before_end <= LARGEST then
        count = count - 1
        from = math.min(from, count)
      else
        before_end, before_at = last_end, last_at
        while to - before_end > LARGEST or at - before_at > LARGEST do
          local size, pause = math.min(to - before_end, LARGEST), math.min(at - before_at, LARGEST)
          entries[count] = struct.pack('<I4I4', size, pause)
          before_end, before_at, count = before_end + size, before_at + pause, count + 1
        end
      end
      entries[count] = struct.pack('<I4I4', to - before_end, at - before_at)
      last_end, last_at, count = to, at, count + 1
    end
  end
  local written = {}
  for number = from, count - 1 do
    written[#written + 1] = entries[number]
  end
  redis.call('SETRANGE', TIMES, HEAD_BYTES + 8 * from, table.concat(written))
  redis.call('SETRANGE', TIMES, 0, struct.pack(HEAD, gap, count, last_end, last_at, before_end, before_at))
  if count > MOST_TIMES then
    thinned(gap, count)
  end
end
