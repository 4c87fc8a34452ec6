-- Give each tag a new version and note the transaction that writes to it. Return the nonce.
-- KEYS: version records. ARGV: nonce; lifetime of a new record, in s; a transaction ID for each record, 0 if it is unknown:
-- then the tag's past is unknown, too.
-- A missing sub-tag stays missing: open finds the transaction in its parent.

for i, key in ipairs(KEYS) do
  local record, unverified, last_xid = current(key), '1', ARGV[i + 2]
  if record then
    if last_xid ~= '0' then unverified = string.sub(record, 30, 30) end
    if tonumber(string.sub(record, 31)) > tonumber(last_xid) then last_xid = string.sub(record, 31) end
    redis.call('SET', key, with_checksum(key, new_version .. unverified .. last_xid), 'KEEPTTL')
  elseif string.sub(key, -6) == '}#meta' then
    redis.call('SET', key, with_checksum(key, new_version .. unverified .. last_xid), 'EX', ARGV[2])
  end
end
return ARGV[1]
