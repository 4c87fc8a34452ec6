"""The scripts that change a group's state on the server; each runs there as one step.

Each can run twice or late and do no harm: the server makes every generation from its own clock and the call's nonce.
Sizes and shapes of metas and entries are in entries.py.
"""

GENERATION = """
local time = redis.call('TIME')
local generation = string.format('%08x%05x', time[1], time[2]) .. ARGV[1]
"""

# KEYS: each meta and that of its whole, by turns. ARGV: a nonce of 16 characters, the lifetime in s of a whole's meta,
# of a part's. Returns the metas. A part knows what its whole knows: who registered with the part did so there, too.
OPEN = (
    GENERATION
    + """
local metas = {}
for i = 1, #KEYS, 2 do
  local meta = redis.call('GET', KEYS[i])
  if not meta then
    local whole, past = redis.call('GET', KEYS[i + 1]), '10'
    if whole and string.sub(whole, 30, 30) == '0' then past = string.sub(whole, 30) end
    meta = generation .. past
    redis.call('SET', KEYS[i], meta, 'EX', KEYS[i] == KEYS[i + 1] and ARGV[2] or ARGV[3])
  end
  metas[#metas + 1] = meta
end
return metas
"""
)

# KEYS: metas. ARGV: a nonce, the lifetime in s of a whole's meta, the id to register with each. Returns the nonce.
# A part that is not there stays so: OPEN will find the id in its whole.
REGISTER = (
    GENERATION
    + """
for i, key in ipairs(KEYS) do
  local meta, cold, highest = redis.call('GET', key), '1', ARGV[i + 2]
  if meta then
    cold = string.sub(meta, 30, 30)
    if tonumber(string.sub(meta, 31)) > tonumber(highest) then highest = string.sub(meta, 31) end
  end
  if string.sub(key, -6) == '}#meta' then
    redis.call('SET', key, generation .. cold .. highest, 'EX', ARGV[2])
  elseif meta then
    redis.call('SET', key, generation .. cold .. highest, 'KEEPTTL')
  end
end
return ARGV[1]
"""
)

# KEYS: meta and entry, by turns. ARGV: generation, stamp, barrier (0: none), TTL in ms and value of each entry. Returns
# 1 for each that was stored. A meta outlives its entries.
FILL = """
local stored = {}
for i = 1, #KEYS, 2 do
  local first = (i - 1) / 2 * 5 + 1
  local generation, stamp, barrier = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local meta = redis.call('GET', KEYS[i])
  stored[#stored + 1] = 0
  if meta and string.sub(meta, 1, 29) == generation and stamp > tonumber(string.sub(meta, 31)) then
    local warm = string.sub(meta, 30, 30) == '0'
    if not warm and barrier > 0 and stamp > barrier then
      local highest = string.sub(meta, 31)
      if barrier > tonumber(highest) then highest = ARGV[first + 2] end
      redis.call('SET', KEYS[i], generation .. '0' .. highest, 'KEEPTTL')
      warm = true
    end
    if warm then
      redis.call('SET', KEYS[i + 1], generation .. ARGV[first + 4], 'PX', ARGV[first + 3])
      redis.call('PEXPIRE', KEYS[i], 2 * ARGV[first + 3], 'GT')
      stored[#stored] = 1
    end
  end
end
return stored
"""
