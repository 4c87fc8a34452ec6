-- Return the version record of each tag; create those that are missing, unverified.
-- KEYS: each tag's record, followed by that of its parent tag (its own, if it has none).
-- ARGV: nonce; lifetime of a new record, in s.
-- A sub-tag starts with what its parent knows: every write to the sub-tag was registered there, too.

local records = {}
for i = 1, #KEYS, 2 do
  local record = current(KEYS[i])
  if not record then
    local parent, past = current(KEYS[i + 1]), '10'
    if parent and string.sub(parent, 30, 30) == '0' then past = string.sub(parent, 30) end
    record = new_version .. past
    redis.call('SET', KEYS[i], with_checksum(KEYS[i], record), 'EX', ARGV[2])
  end
  records[#records + 1] = with_checksum(KEYS[i], record)
end
return records
