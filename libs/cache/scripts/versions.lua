-- Shared by open and register. ARGV[1] is a nonce: the epoch, 8 characters, and 8 random ones.
-- The server makes each version from its own clock and the nonce, so a script may run twice or late without harm.

local time = redis.call('TIME')
local new_version = string.format('%08x%05x', time[1], time[2]) .. ARGV[1]

-- A record of another epoch counts as missing.
local function current(key)
  local record = read(key)
  return record and string.sub(record, 14, 21) == string.sub(ARGV[1], 1, 8) and record
end
