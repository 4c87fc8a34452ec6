-- Owned by the cache library: groups whose invalidation could not reach Redis before their write was committed.

CREATE TABLE cache_pending (
    group_key text NOT NULL,
    xact_id bigint NOT NULL,
    CONSTRAINT cache_pending_pkey PRIMARY KEY (group_key, xact_id)
);
COMMENT ON COLUMN cache_pending.group_key IS 'The group; it names its salon, where it has one, in braces.';
COMMENT ON COLUMN cache_pending.xact_id IS 'The transaction that wrote to the group.';

GRANT SELECT, INSERT, DELETE ON cache_pending TO parlor_booking, parlor_messaging;
GRANT SELECT ON cache_pending TO parlor_stats;
