"""The steps of the Redis store, in Lua: each script runs alone on the server, so each is one atomic step.

Keys begin with ``tidemill:{project/tenant}:limits:``; the braces keep a scope's keys on one node of a Redis cluster.

=================== ======= =============================================================================
``spent:ACCOUNT``   hash    end of a bucket (microseconds) -> quanta
``leases:ACCOUNT``  set     ids of the account's leases
``lease:ID``        hash    account, holder, granted, returned, settled, idle, window, until; owed when done
``until``           zset    ids of open leases by their end
``requests``        zset    ids of settled requests by the time of settlement
=================== ======= =============================================================================

Numbers go in and out as text: Lua's are doubles, exact up to 2^53, but its own formatting keeps 14 digits only.
"""

from __future__ import annotations

from typing import Final

_COMMON: Final = """
local LONGEST = 400 * 86400 * 1000000 -- a window is shorter, and where the lease is forgotten nobody knows its own
local p = KEYS[1]
local call = redis.call
local function text(x) return string.format('%.0f', x) end
local function number(x) return tonumber(x) or 0 end
local now = tonumber(ARGV[1])
if not now then
  local t = call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
end
local function bucket_end(at, window)
  local size = math.max(1000, math.floor(window / 60))
  return math.ceil(at / size) * size
end
local function spend(account, ends, window, amount)
  local key = p .. 'spent:' .. account
  call('HINCRBY', key, text(ends), text(amount))
  local life = math.floor(window / 1000) * 2 + 86400000
  if call('PTTL', key) < life then call('PEXPIRE', key, text(life)) end
end
local function forget(lease, account)
  call('DEL', p .. 'lease:' .. lease)
  call('SREM', p .. 'leases:' .. account, lease)
  call('ZREM', p .. 'until', lease)
end
local function position(account, window)
  local spent, leased, idle, buckets = 0, 0, 0, {}
  local entries = call('HGETALL', p .. 'spent:' .. account)
  for i = 1, #entries, 2 do
    if tonumber(entries[i]) > now - window then
      spent = spent + tonumber(entries[i + 1])
      buckets[#buckets + 1] = entries[i]
      buckets[#buckets + 1] = entries[i + 1]
    end
  end
  for _, lease in ipairs(call('SMEMBERS', p .. 'leases:' .. account)) do
    local v = call('HMGET', p .. 'lease:' .. lease, 'granted', 'returned', 'settled', 'idle', 'owed')
    if v[1] and not v[5] then
      local out = v[1] - v[2] - v[3]
      if out > 0 then
        leased = leased + out
        idle = idle + math.min(out, tonumber(v[4]))
      end
    end
  end
  return spent, leased, idle, buckets
end
"""

# ARGV: now, then for each ask: lease, account, holder, need, want, promised, amount, window and ttl
# (microseconds).
GRANT: Final = (
    _COMMON
    + """
local answers = {text(now)}
for i = 2, #ARGV, 9 do
  local lease, account, holder = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local need, want, promised = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
  local amount, window, ttl = tonumber(ARGV[i + 6]), tonumber(ARGV[i + 7]), tonumber(ARGV[i + 8])
  local spent, leased, idle, buckets = position(account, window)
  local available = amount - spent - leased
  if available < need then
    answers[#answers + 1] = {'', text(leased), text(idle), buckets}
  else
    local granted = math.min(available, math.max(need, want))
    call('HSET', p .. 'lease:' .. lease, 'account', account, 'holder', holder, 'granted', text(granted),
      'returned', '0', 'settled', '0', 'idle', text(math.max(0, granted - promised)), 'window', text(window),
      'until', text(now + ttl))
    call('SADD', p .. 'leases:' .. account, lease)
    call('ZADD', p .. 'until', text(now + ttl), lease)
    local key = p .. 'spent:' .. account
    for _, ends in ipairs(call('HKEYS', key)) do
      if tonumber(ends) <= now - window then call('HDEL', key, ends) end
    end
    answers[#answers + 1] = {text(granted)}
  end
end
return answers
"""
)

# ARGV: now, then for each report: lease, returned, idle, ttl or '', used or '', last use (microseconds).
REPORT: Final = (
    _COMMON
    + """
for i = 2, #ARGV, 6 do
  local lease, key = ARGV[i], p .. 'lease:' .. ARGV[i]
  local v = call('HMGET', key, 'account', 'returned', 'settled', 'window', 'until', 'owed')
  if v[1] and not v[6] then
    local account, window = v[1], tonumber(v[4])
    call('HSET', key, 'returned', text(math.max(tonumber(v[2]), tonumber(ARGV[i + 1]))), 'idle', ARGV[i + 2])
    if ARGV[i + 3] ~= '' then
      local ends = math.max(tonumber(v[5]), now + tonumber(ARGV[i + 3]))
      call('HSET', key, 'until', text(ends))
      call('ZADD', p .. 'until', text(ends), lease)
    end
    if ARGV[i + 4] ~= '' then
      local owed = tonumber(ARGV[i + 4]) - tonumber(v[3])
      if owed <= 0 then
        forget(lease, account)
      else
        local ends = bucket_end(math.min(now, tonumber(ARGV[i + 5])), window)
        spend(account, ends, window, owed)
        call('HSET', key, 'owed', text(owed), 'idle', '0', 'until', text(ends + window))
        call('ZREM', p .. 'until', lease)
        call('SREM', p .. 'leases:' .. account, lease)
        call('PEXPIRE', key, text(math.max(1, math.ceil((ends + window - now) / 1000))))
      end
    end
  end
end
return 0
"""
)

# ARGV: now, then for each request: id, admitted at (microseconds), number of charges; then for each charge: lease,
# account, owed.
SETTLE: Final = (
    _COMMON
    + """
local fresh, unleased, i = 0, 0, 2
while i <= #ARGV do
  local id, at, charges = ARGV[i], math.min(now, tonumber(ARGV[i + 1])), tonumber(ARGV[i + 2])
  i = i + 3
  if call('ZADD', p .. 'requests', 'NX', text(now), id) == 0 then
    i = i + 3 * charges
  else
    fresh = fresh + 1
    for _ = 1, charges do
      local lease, account, used = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
      local key = p .. 'lease:' .. lease
      i = i + 3
      local v = call('HMGET', key, 'window', 'owed')
      if not v[1] then
        unleased = unleased + 1
        if used > 0 then spend(account, bucket_end(at, 60000000), LONGEST, used) end
      else
        local counted = math.min(number(v[2]), used)
        call('HINCRBY', key, 'settled', text(used))
        if v[2] then
          if tonumber(v[2]) - counted <= 0 then forget(lease, account)
          else call('HINCRBY', key, 'owed', text(0 - counted)) end
        end
        if used > counted then
          spend(account, bucket_end(at, tonumber(v[1])), tonumber(v[1]), used - counted)
        end
      end
    end
  end
end
return {fresh, unleased}
"""
)

# ARGV: now, grace (microseconds). Gives holder and end of each expired lease.
EXPIRED: Final = (
    _COMMON
    + """
local found = {text(now)}
for _, lease in ipairs(call('ZRANGEBYSCORE', p .. 'until', '-inf', '(' .. text(now - tonumber(ARGV[2])))) do
  local v = call('HMGET', p .. 'lease:' .. lease, 'holder', 'until')
  if v[1] then
    found[#found + 1] = v[1]
    found[#found + 1] = v[2]
  end
end
return found
"""
)

# ARGV: now, grace (microseconds), holders.
CLOSE: Final = (
    _COMMON
    + """
local gone, closed = {}, 0
for i = 3, #ARGV do gone[ARGV[i]] = true end
for _, lease in ipairs(call('ZRANGEBYSCORE', p .. 'until', '-inf', '(' .. text(now - tonumber(ARGV[2])))) do
  local v = call('HMGET', p .. 'lease:' .. lease, 'holder', 'account')
  if v[1] and gone[v[1]] then
    forget(lease, v[2])
    closed = closed + 1
  end
end
return closed
"""
)

# ARGV: now, age (microseconds).
TIDY: Final = (
    _COMMON
    + """
return call('ZREMRANGEBYSCORE', p .. 'requests', '-inf', '(' .. text(now - tonumber(ARGV[2])))
"""
)

# ARGV: now, then for each limit: account, window. Gives spent and leased of each.
STANDING: Final = (
    _COMMON
    + """
local found = {}
for i = 2, #ARGV, 2 do
  local spent, leased = position(ARGV[i], tonumber(ARGV[i + 1]))
  found[#found + 1] = text(spent)
  found[#found + 1] = text(leased)
end
return found
"""
)
