-- Store entries, each only if no write can be missing in it. Return 1 for each that was stored, else 0.
-- KEYS: version record and entry, by turns. ARGV, for each entry: version at the read; snapshot xmin of the load;
-- barrier (0: none); least lifetime of the record, in ms; TTL of the entry, in ms; value of the entry.
--
-- The version must be unchanged, and the load's snapshot must be later than every registered transaction. A tag whose
-- past is unknown also needs a snapshot later than the barrier; it is verified from then on.

local stored = {}
for i = 1, #KEYS, 2 do
  local first = (i - 1) / 2 * 6 + 1
  local version, xmin, barrier = ARGV[first], tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  local record = read(KEYS[i])
  stored[#stored + 1] = 0
  if record and string.sub(record, 1, 29) == version and xmin > tonumber(string.sub(record, 31)) then
    local verified = string.sub(record, 30, 30) == '0'
    if not verified and barrier > 0 and xmin > barrier then
      local last_xid = string.sub(record, 31)
      if barrier > tonumber(last_xid) then last_xid = ARGV[first + 2] end
      redis.call('SET', KEYS[i], with_checksum(KEYS[i], version .. '0' .. last_xid), 'KEEPTTL')
      verified = true
    end
    if verified then
      redis.call('SET', KEYS[i + 1], version .. ARGV[first + 5], 'PX', ARGV[first + 4])
      redis.call('PEXPIRE', KEYS[i], ARGV[first + 3], 'GT')
      stored[#stored] = 1
    end
  end
end
return stored
