-- Shared by all scripts: read and write tag version records.
--
-- A record is "version | unverified | last_xid | checksum": 29 characters, 8 of which are the epoch; '1' while the
-- tag's past is unknown, else '0'; the highest transaction ID registered, in decimal; 8 hex digits of SHA-1 over the key
-- and the rest. The checksum finds damage, not attacks. codec.py reads the same format.
--
-- An unreadable record, of any type, counts as missing: it is removed. So a script fails only for reasons that concern
-- the whole server, such as its memory or its ACL.

local function with_checksum(key, record)
  return record .. string.sub(redis.sha1hex(key .. record), 1, 8)
end

local function read(key)
  local value = redis.pcall('GET', key)
  if not value then return false end
  if type(value) == 'table' and string.sub(value.err, 1, 9) ~= 'WRONGTYPE' then redis.call('GET', key) end
  if type(value) == 'string' and #value >= 39 and #value <= 54 then
    local record = string.sub(value, 1, -9)
    if value == with_checksum(key, record) and string.find(record, '^[01]%d+$', 30) then return record end
  end
  redis.call('UNLINK', key)
  return false
end
