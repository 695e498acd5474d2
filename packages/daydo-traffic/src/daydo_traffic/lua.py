"""The planner's twin on the Redis server: one call, one instant, all checks of a request or none.

The clock is the server's (TIME), unless one is passed, in tests. Every key expires by itself once it says nothing
more; with a passed clock, which Redis knows nothing of, a day later. Scripts stay on Redis 6.2.
"""

from __future__ import annotations

# Numbers are doubles, exact up to 2^53; inside a text they need %.0f, for tostring() rounds to 14 digits.
_NOW = """
local now, slack
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now, slack = time[1] * 1000000 + time[2], 0
else
  now, slack = tonumber(ARGV[1]), 86400000
end
local function text(number) return string.format('%.0f', number) end
local function ttl(us) return math.ceil(us / 1000) + 1 + slack end
"""

# KEYS: one per check. ARGV: now or '', then Plan.word of each check, which says its kind, its cost and what that kind
# goes by. Answers 1 or 0 (all fit), then fits, used, next per check: a Verdict.
DECIDE = (
    _NOW
    + """
local function level_of(key, drain, unit)
  local state = redis.call('GET', key)
  if not state then return 0 end
  local level, instant, old_unit = string.match(state, '(%d+):(%d+):(%d+)')
  level, instant = tonumber(level), tonumber(instant)
  if old_unit ~= unit then level = math.ceil(math.min(level / old_unit * unit, 2^53)) end
  if now > instant then level = math.max(0, level - (now - instant) * drain) end
  return level
end

local function pour(key, cost, drain, unit, level)
  level = level + cost * unit
  redis.call('SET', key, string.format('%.0f:%.0f:%s', level, now, unit), 'PX', ttl(level / drain))
  return level
end

local cost, room, drain, unit = string.match(ARGV[2], '^g:(%d+):(%d+):(%d+):(%d+)$')
if cost and #KEYS == 1 then -- what most requests ask: the rest of this text need not run
  local level = level_of(KEYS[1], drain, unit)
  if level > tonumber(room) then return {0, 0, level, 0} end
  return {1, 1, pour(KEYS[1], cost, drain, unit, level), 0}
end

-- A check is {room or limit, …}, and has a kind and a cost.
local judge, charge = {}, {}

function judge.g(key, check)
  local level = level_of(key, check[2], check[3])
  return level <= tonumber(check[1]), level, 0
end

function charge.g(key, check, level)
  return pour(key, check.cost, check[2], check[3], level), 0
end

function judge.w(key, check)
  local limit, period = tonumber(check[1]), tonumber(check[2])
  local oldest = redis.call('LINDEX', key, 0)
  while oldest and tonumber(oldest) <= now - period do
    redis.call('LPOP', key)
    oldest = redis.call('LINDEX', key, 0)
  end
  local units = redis.call('LLEN', key)
  local excess = units + check.cost - limit
  local fits = excess <= 0 or units == 0
  if not fits then oldest = redis.call('LINDEX', key, math.min(excess, units) - 1) end
  return fits, units, oldest and tonumber(oldest) + period - now or 0
end

function charge.w(key, check, units)
  local period = tonumber(check[2])
  for _ = 1, check.cost do redis.call('RPUSH', key, text(now)) end
  redis.call('PEXPIRE', key, ttl(period))
  return units + check.cost, tonumber(redis.call('LINDEX', key, 0)) + period - now
end

local function first_end(key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) - now or 0
end

function judge.c(key, check)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now))
  local leases = redis.call('ZCARD', key)
  return leases < tonumber(check[1]), leases, first_end(key)
end

function charge.c(key, check, leases)
  redis.call('ZADD', key, text(now + tonumber(check[2])), check[3])
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  redis.call('PEXPIRE', key, ttl(tonumber(last[2]) - now))
  return leases + 1, first_end(key)
end

local function day(check)
  local today, tomorrow = tonumber(check[2]), tonumber(check[3])
  for i = 3, 4 do
    if now >= tomorrow then today, tomorrow = tomorrow, tonumber(check[i + 1]) end
  end
  return today, tomorrow
end

function judge.d(key, check)
  local today, tomorrow = day(check)
  local used = 0
  local state = redis.call('GET', key)
  if state then
    local began, count = string.match(state, '(%d+):(%d+)')
    if tonumber(began) == today then used = tonumber(count) end
  end
  return used + check.cost <= tonumber(check[1]) or used == 0, used, tomorrow - now
end

function charge.d(key, check, used)
  local today, tomorrow = day(check)
  used = used + check.cost
  redis.call('SET', key, text(today) .. ':' .. text(used), 'PX', ttl(math.max(0, tomorrow - now)))
  return used, tomorrow - now
end

local function check_of(word)
  local kind, cost, rest = string.match(word, '^(%a):(%d+):(.*)$')
  local check = {kind = kind, cost = tonumber(cost)}
  for each in string.gmatch(rest, '[^:]+') do table.insert(check, each) end
  return check
end

local answer, checks, all = {1}, {}, true
for i = 1, #KEYS do
  local check = check_of(ARGV[i + 1])
  local fits, used, next = judge[check.kind](KEYS[i], check)
  checks[i] = check
  all = all and fits
  answer[3 * i - 1], answer[3 * i], answer[3 * i + 1] = fits and 1 or 0, used, next
end
if not all then
  answer[1] = 0
  return answer
end
for i, check in ipairs(checks) do
  answer[3 * i], answer[3 * i + 1] = charge[check.kind](KEYS[i], check, answer[3 * i])
end
return answer
"""
)

# KEYS: leases' keys. ARGV: now or '', then lease and length in µs per key. Renews what is still there: a lease given
# back meanwhile must not return.
RENEW = (
    _NOW
    + """
for i, key in ipairs(KEYS) do
  local lease, length = ARGV[2 * i], tonumber(ARGV[2 * i + 1])
  redis.call('ZADD', key, 'XX', text(now + length), lease)
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  if last[2] then redis.call('PEXPIRE', key, ttl(tonumber(last[2]) - now)) end
end
return 1
"""
)

# KEYS: the living, the changes. ARGV: now or '', who I am, µs for which that holds. Answers how many live, and the
# changes as name, value, name, value, …
REFRESH = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], text(now + tonumber(ARGV[3])), ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', text(now))
redis.call('PEXPIRE', KEYS[1], ttl(tonumber(ARGV[3])))
return {redis.call('ZCARD', KEYS[1]), redis.call('HGETALL', KEYS[2])}
"""
)
