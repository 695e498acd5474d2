"""Who may store a value: the theory, and the scripts that carry it out.

Beside the value of a key Redis keeps its *guard*, a hash that is there only while something is going on::

    {space:key}:2     the value, as version 2 of its type has it     (:mod:`.record`)
    {space:key}:g     l:2        <ends> <token>    the lease: this process loads
                      f:2        <ends> <reason>   the last load failed; nobody loads until then
                      b:<token>  <ends>            the barrier: a transaction that changes it is open

A process that finds no value *claims* the lease. One gets it and loads; the others wait and look again. What was loaded
is *filled* in only while the claimer's token still stands. An invalidation removes value and leases, all versions, in
one step; so whatever was read before it can no longer be stored after it. That is the whole argument, and it does not
depend on any time: a lease that has run out is still good if nobody else took it.

A transaction *bars* the key before its COMMIT. From then on nobody gets a lease, so nothing read before the COMMIT is
stored, and what is loaded meanwhile is handed out but not kept. After the COMMIT the invalidation is repeated and takes
the barrier away; after a rollback or a crash it ends by itself.

What forgets the guard (FLUSHALL, eviction, a failover) forgets the lease: the fill is refused, and that is safe. If it
forgets a barrier, the invalidation after the COMMIT is still to come.

A server without room refuses what needs some, unless its script has written something already. So a script that ends
something begins with a deletion, and goes through; one that stores a value begins with that, and is refused.

A tag is a hash of its own, ``{tag}``: the time of its last invalidation (``at``), and for each open transaction a time
that lies ahead. A value is good if its load began after the latest of them. Claims and invalidations are timed by the
clock of the same Redis; on a cluster those of two nodes must agree.
"""

from __future__ import annotations

# ARGV[1] of every script: the time of a clock that was passed in, or nothing for Redis' own.
_NOW = """
local function text(number) return string.format('%.0f', number) end
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
"""
_KEEP = """
local function keep(key, micros)
  local millis = math.ceil(micros / 1000)
  if redis.call('PTTL', key) < millis then redis.call('PEXPIRE', key, text(millis)) end
end
"""
_VOID = """
local function is_barrier(field, ends, token)
  return string.sub(field, 1, 2) == 'b:' and field ~= 'b:' .. token and tonumber(ends) > now
end
local function is_barred(guard)
  local fields = redis.call('HGETALL', guard)
  for i = 1, #fields, 2 do
    if is_barrier(fields[i], fields[i + 1], '') then return true end
  end
  return false
end
local function void(guard, token)
  local fields = redis.call('HGETALL', guard)
  for i = 1, #fields, 2 do
    if not is_barrier(fields[i], fields[i + 1], token) then redis.call('HDEL', guard, fields[i]) end
  end
end
"""
# now, version, token, lease in µs, digits of the value that was found and is not wanted
CLAIM = (
    _NOW
    + _KEEP
    + """
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 1, 16) ~= ARGV[5] then return {'value', now, value} end
local fields = redis.call('HGETALL', KEYS[2])
local lease, failure = 'l:' .. ARGV[2], 'f:' .. ARGV[2]
local answer = 'load'
for i = 1, #fields, 2 do
  local ends, rest = string.match(fields[i + 1], '^(%d+) ?(.*)$')
  if tonumber(ends) > now then
    if string.sub(fields[i], 1, 2) == 'b:' then return {'barred', now, false} end
    if fields[i] == failure then answer = 'failed ' .. fields[i + 1] end
    if fields[i] == lease and rest ~= ARGV[3] and answer == 'load' then answer = 'wait' end
  end
end
if answer == 'load' then
  redis.call('HSET', KEYS[2], lease, text(now + ARGV[4]) .. ' ' .. ARGV[3])
  keep(KEYS[2], ARGV[4])
end
return {answer, now, false}
"""
)
_MINE = """
local lease = 'l:' .. ARGV[2]
local held = redis.call('HGET', KEYS[#KEYS], lease)
local mine = held and string.match(held, '^%d+ (.*)$') == ARGV[3]
"""
# now, version, token, life in ms, the value with its digits
FILL = (
    _NOW
    + _MINE
    + """
if not mine then return 0 end
redis.call('SET', KEYS[1], ARGV[5], 'PX', ARGV[4])
redis.call('HDEL', KEYS[2], lease, 'f:' .. ARGV[2])
return 1
"""
)
# now, version, token, lease in µs
RENEW = (
    _NOW
    + _KEEP
    + _MINE
    + """
if not mine then return 0 end
redis.call('HSET', KEYS[1], lease, text(now + ARGV[4]) .. ' ' .. ARGV[3])
keep(KEYS[1], ARGV[4])
return 1
"""
)
# now, version, token, how long nobody shall load in µs, why
FAIL = (
    _NOW
    + _KEEP
    + _MINE
    + """
if not mine then return 0 end
redis.call('HDEL', KEYS[1], lease)
if tonumber(ARGV[4]) > 0 then
  redis.call('HSET', KEYS[1], 'f:' .. ARGV[2], text(now + ARGV[4]) .. ' ' .. ARGV[5])
  keep(KEYS[1], ARGV[4])
end
return 1
"""
)
# now, the transaction's token, its barrier in µs or 0 to end it, channel, news; the guard is the last key.
INVALIDATE = (
    _NOW
    + _KEEP
    + _VOID
    + """
for i = 1, #KEYS - 1 do redis.call('DEL', KEYS[i]) end
void(KEYS[#KEYS], ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[5])
if tonumber(ARGV[3]) > 0 then
  redis.call('HSET', KEYS[#KEYS], 'b:' .. ARGV[2], text(now + ARGV[3]))
  keep(KEYS[#KEYS], ARGV[3])
end
return 1
"""
)
# now, life in ms, the value without its digits, channel, news; the first key is ours, the last the guard.
PUT = (
    _NOW
    + _VOID
    + """
local barred = is_barred(KEYS[#KEYS])
if not barred then redis.call('SET', KEYS[1], string.format('%016.0f', now) .. ARGV[3], 'PX', ARGV[2]) end
for i = barred and 1 or 2, #KEYS - 1 do redis.call('DEL', KEYS[i]) end
void(KEYS[#KEYS], '')
redis.call('PUBLISH', ARGV[4], ARGV[5])
return barred and 0 or 1
"""
)
# now, the transaction's token, its barrier in µs or 0, how long to keep it in µs, channel, tag, origin
TAG = (
    _NOW
    + _KEEP
    + """
redis.call('HDEL', KEYS[1], 'b:' .. ARGV[2])
local latest = now
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local field, ends = fields[i], tonumber(fields[i + 1])
  if ends > latest then latest = ends end
  if ends <= now and field ~= 'at' then redis.call('HDEL', KEYS[1], field) end
end
redis.call('HSET', KEYS[1], 'at', text(now))
if tonumber(ARGV[3]) > 0 then
  redis.call('HSET', KEYS[1], 'b:' .. ARGV[2], text(now + ARGV[3]))
  if now + ARGV[3] > latest then latest = now + ARGV[3] end
end
keep(KEYS[1], ARGV[4])
redis.call('PUBLISH', ARGV[5], 't ' .. ARGV[7] .. ' ' .. text(latest) .. ' ' .. ARGV[6])
return latest
"""
)
BEAT = _NOW + "redis.call('PUBLISH', ARGV[2], ARGV[3]) return now"
