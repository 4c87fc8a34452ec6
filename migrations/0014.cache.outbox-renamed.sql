-- Owned by the cache library: the invalidation outbox under its present name.

ALTER TABLE cache_pending RENAME TO cache_outbox;
ALTER TABLE cache_outbox RENAME COLUMN group_key TO tag;
ALTER TABLE cache_outbox RENAME CONSTRAINT cache_pending_pkey TO cache_outbox_pkey;
COMMENT ON TABLE cache_outbox IS
    'Tags whose invalidation could not reach Redis before their write was committed. Rows are removed once they are registered.';
COMMENT ON COLUMN cache_outbox.tag IS
    'The key of the tag''s version record; it names its salon, where it has one, in braces. Empty: all tags, once there were too many rows.';
COMMENT ON COLUMN cache_outbox.xact_id IS 'The transaction that wrote to what the tag stands for.';

-- Processes of release 0.3 use the old names until they have been replaced.
CREATE VIEW cache_pending AS SELECT tag AS group_key, xact_id FROM cache_outbox;
COMMENT ON VIEW cache_pending IS 'cache_outbox, for processes of release 0.3.';

GRANT SELECT, INSERT, DELETE ON cache_pending TO parlor_booking, parlor_messaging;
GRANT SELECT ON cache_pending TO parlor_stats;
