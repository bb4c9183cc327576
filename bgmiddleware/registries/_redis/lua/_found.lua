-- Before those that need the job: it is there, and has not expired.
if not state then
  return {redis.call('EXISTS', GONE) == 1 and 'expired' or 'missing'}
end
if expired then
  return {'expired'}
end
