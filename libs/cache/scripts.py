"""The scripts that change a tag's state on the server; each runs there as one step.

Each can run twice or late and do no harm: the server makes every generation from its own clock and the call's nonce.
Sizes and shapes of metas and entries are in entries.py.

An unreadable meta of any type counts as missing: a script removes it and continues. So a script fails only for
reasons that concern the whole server, such as its memory or its ACL.
"""

import hashlib
from functools import cache

READ = """
local function sealed(key, meta)
  return meta .. string.sub(redis.sha1hex(key .. meta), 1, 8)
end

local function read(key)
  local value = redis.pcall('GET', key)
  if not value then return false end
  if type(value) == 'table' and string.sub(value.err, 1, 9) ~= 'WRONGTYPE' then redis.call('GET', key) end
  if type(value) == 'string' and #value >= 39 and #value <= 54 then
    local meta = string.sub(value, 1, -9)
    if value == sealed(key, meta) and string.find(meta, '^[01]%d+$', 30) then return meta end
  end
  redis.call('UNLINK', key)
  return false
end
"""

READ = """
local function sealed(key, meta)
  return meta .. string.sub(redis.sha1hex(key .. meta), 1, 8)
end

local function read(key)
  local value = redis.pcall('GET', key)
  if not value then return false end
  if type(value) == 'table' and string.sub(value.err, 1, 9) ~= 'WRONGTYPE' then redis.call('GET', key) end
  if type(value) == 'string' and #value >= 39 and #value <= 54 then
    local meta = string.sub(value, 1, -9)
    if value == sealed(key, meta) and string.find(meta, '^[01]%d+$', 30) then return meta end
  end
  redis.call('UNLINK', key)
  return false
end

-- One of another epoch counts as missing.
local function current(key)
  local meta = read(key)
  return meta and string.sub(meta, 14, 21) == string.sub(ARGV[1], 1, 8) and meta
end
"""

# A nonce is the epoch and 8 characters at random.
GENERATION = """
local time = redis.call('TIME')
local generation = string.format('%08x%05x', time[1], time[2]) .. ARGV[1]
"""

# KEYS: each meta and that of its whole, by turns. ARGV: a nonce of 16 characters, the lifetime of a new meta in s.
# Returns the metas. A part knows what its whole knows: who registered with the part did so there, too.
OPEN = (
    READ
    + GENERATION
    + """
local metas = {}
for i = 1, #KEYS, 2 do
  local meta = current(KEYS[i])
  if not meta then
    local whole, past = current(KEYS[i + 1]), '10'
    if whole and string.sub(whole, 30, 30) == '0' then past = string.sub(whole, 30) end
    meta = generation .. past
    redis.call('SET', KEYS[i], sealed(KEYS[i], meta), 'EX', ARGV[2])
  end
  metas[#metas + 1] = sealed(KEYS[i], meta)
end
return metas
"""
)

# KEYS: metas. ARGV: a nonce, the lifetime of a new meta in s, the id to register with each. Returns the nonce.
# A part that is not there stays so: OPEN will find the id in its whole.
REGISTER = (
    READ
    + GENERATION
    + """
for i, key in ipairs(KEYS) do
  local meta, cold, highest = current(key), '1', ARGV[i + 2]
  if meta then
    cold = string.sub(meta, 30, 30)
    if tonumber(string.sub(meta, 31)) > tonumber(highest) then highest = string.sub(meta, 31) end
    redis.call('SET', key, sealed(key, generation .. cold .. highest), 'KEEPTTL')
  elseif string.sub(key, -6) == '}#meta' then
    redis.call('SET', key, sealed(key, generation .. cold .. highest), 'EX', ARGV[2])
  end
end
return ARGV[1]
"""
)

# KEYS: meta and entry, by turns. ARGV: generation, xmin, barrier (0: none), least lifetime of the meta in ms, TTL in
# ms and value of each entry. Returns 1 for each that was stored.
FILL = (
    READ
    + """
local stored = {}
for i = 1, #KEYS, 2 do
  local first = (i - 1) / 2 * 6 + 1
  local generation, xmin, barrier = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local meta = read(KEYS[i])
  stored[#stored + 1] = 0
  if meta and string.sub(meta, 1, 29) == generation and xmin > tonumber(string.sub(meta, 31)) then
    local warm = string.sub(meta, 30, 30) == '0'
    if not warm and barrier > 0 and xmin > barrier then
      local highest = string.sub(meta, 31)
      if barrier > tonumber(highest) then highest = ARGV[first + 2] end
      redis.call('SET', KEYS[i], sealed(KEYS[i], generation .. '0' .. highest), 'KEEPTTL')
      warm = true
    end
    if warm then
      redis.call('SET', KEYS[i + 1], generation .. ARGV[first + 5], 'PX', ARGV[first + 4])
      redis.call('PEXPIRE', KEYS[i], ARGV[first + 3], 'GT')
      stored[#stored] = 1
    end
  end
end
return stored
"""
)


@cache
def sha(script: str) -> str:
    """Return the name under which a server knows a script that it has run."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
