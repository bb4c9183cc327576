-- Before each script of the index. KEYS are always these eleven, all in the index's slot; behind them, the groups of a job,
-- or its name.
--   jobs     every key, by the order of coming        due    when to look at one that is pending or runs
--   pending  those that wait, by the same order       ended  those that ended, by when they are forgotten
--   running  those that run, by the same order        last   the number of the last that came
-- The record of a job says what is true, and the index follows it: what was not filed, because somebody died between
-- the two, is filed when it is due.
--   queue    those that wait, in the order in which they are taken
--   processes  those in whose memory jobs wait, by how long they are there for sure
--   held     those jobs, each as its process, a zero byte and its key, by nothing
--   expired  those that are remembered to have expired, by when that was seen
--   kept     those that ended and have no TTL, by their bytes; due now and then, to be filed as what they are
local JOBS, PENDING, RUNNING, DUE, ENDED, LAST, QUEUE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local PROCESSES, HELD, EXPIRED, KEPT = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local FIRST_GROUP, SEPARATOR = 12, '\0'
-- Return where in the queue a job stands: behind all of a lower rank, and within its own in the order of coming. Both are
-- told apart, as a score has 53 bits.
local function turn(rank, number)
  return string.format('%.0f', tonumber(rank) * 2 ^ 48 + tonumber(number))
end
local NOW = tonumber(ARGV[1])
if not NOW then
  local time = redis.call('TIME')
  NOW = time[1] + time[2] / 1000000
end
