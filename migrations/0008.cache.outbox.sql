-- Owned by the cache library: what a row of cache_pending may stand for.

COMMENT ON TABLE cache_pending IS
    'Groups whose invalidation could not reach Redis before their write was committed. Rows are removed once they are registered.';
COMMENT ON COLUMN cache_pending.group_key IS
    'The group; it names its salon, where it has one, in braces. Empty: all groups, once there were too many rows.';
