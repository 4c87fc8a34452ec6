"""The scripts that change a group's state on the server; each runs there as one step.

Each can run twice or late and do no harm: the server makes every generation from its own clock and the call's nonce.
Sizes and shapes of metas and entries are in entries.py.
"""

GENERATION = """
local time = redis.call('TIME')
local generation = string.format('%08x%05x', time[1], time[2]) .. ARGV[1]
"""

# KEYS: metas. ARGV: a nonce of 16 characters, the metas' lifetime in s. Returns the metas.
OPEN = (
    GENERATION
    + """
local metas = {}
for i, key in ipairs(KEYS) do
  metas[i] = redis.call('GET', key)
  if not metas[i] then
    metas[i] = generation .. '10'
    redis.call('SET', key, metas[i], 'EX', ARGV[2])
  end
end
return metas
"""
)

# KEYS: metas. ARGV: a nonce, the metas' lifetime in s, the id to register with each. Returns the nonce.
REGISTER = (
    GENERATION
    + """
for i, key in ipairs(KEYS) do
  local meta, cold, highest = redis.call('GET', key), '1', ARGV[i + 2]
  if meta then
    cold = string.sub(meta, 30, 30)
    if tonumber(string.sub(meta, 31)) > tonumber(highest) then highest = string.sub(meta, 31) end
  end
  redis.call('SET', key, generation .. cold .. highest, 'EX', ARGV[2])
end
return ARGV[1]
"""
)

# KEYS: meta and entry, by turns. ARGV: the metas' lifetime in s; generation, stamp, barrier (0: none), TTL in ms and
# value of each entry. Returns 1 for each that was stored.
FILL = """
local stored = {}
for i = 1, #KEYS, 2 do
  local first = (i - 1) / 2 * 5 + 2
  local generation, stamp, barrier = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local meta = redis.call('GET', KEYS[i])
  stored[#stored + 1] = 0
  if meta and string.sub(meta, 1, 29) == generation and stamp > tonumber(string.sub(meta, 31)) then
    local warm = string.sub(meta, 30, 30) == '0'
    if not warm and barrier > 0 and stamp > barrier then
      local highest = string.sub(meta, 31)
      if barrier > tonumber(highest) then highest = ARGV[first + 2] end
      redis.call('SET', KEYS[i], generation .. '0' .. highest, 'EX', ARGV[1])
      warm = true
    end
    if warm then
      redis.call('SET', KEYS[i + 1], generation .. ARGV[first + 4], 'PX', ARGV[first + 3])
      stored[#stored] = 1
    end
  end
end
return stored
"""
