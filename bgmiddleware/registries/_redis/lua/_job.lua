-- Before each script of one job. KEYS are always the same seven, all in the job's slot. ARGV[1]: the time, or '' for the
-- server's own. A script answers {'ok', …} or {what is wrong, …}.
local RECORD, GONE, REQUEST, OUTPUT, BODY, WAKE, TIMES = unpack(KEYS)
local NOW = tonumber(ARGV[1])
if not NOW then
  local time = redis.call('TIME')
  NOW = time[1] + time[2] / 1000000
end
-- until: when a pending job is lost, or an ended one is forgotten; empty while it runs, or is kept.
local state, limit, op = unpack(redis.call('HMGET', RECORD, 'state', 'until', 'op'))
local expired = state and state ~= 'pending' and state ~= 'running' and limit ~= '' and NOW >= tonumber(limit)

-- Wake who waits, whatever for, and who comes a little later. Not by deleting the stream: that wakes nobody.
local function wake_for_good()
  redis.call('XADD', WAKE, 'MAXLEN', 1, '18446744073709551615-1', 'e', '')
  redis.call('PEXPIRE', WAKE, 60000)
end
