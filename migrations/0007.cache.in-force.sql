-- Owned by the cache library: which cache is in force.

CREATE TABLE cache_in_force (
    only_row boolean NOT NULL DEFAULT true,
    epoch text NOT NULL DEFAULT '',
    servers text NOT NULL DEFAULT '',
    history text NOT NULL DEFAULT '',
    settled boolean NOT NULL DEFAULT true,
    CONSTRAINT cache_in_force_pkey PRIMARY KEY (only_row),
    CONSTRAINT cache_in_force_only_row_check CHECK (only_row)
);
COMMENT ON TABLE cache_in_force IS 'The cache that all processes use, in one row. docs/decisions/0030.';
COMMENT ON COLUMN cache_in_force.epoch IS 'Random, new with each change of the row. Records of another epoch don''t count.';
COMMENT ON COLUMN cache_in_force.servers IS 'run_id/master_replid of each server, in order.';
COMMENT ON COLUMN cache_in_force.history IS 'The system identifier and the timeline of this database when it was put in force.';
COMMENT ON COLUMN cache_in_force.settled IS 'Whether every lease of the epochs before has ended.';
INSERT INTO cache_in_force DEFAULT VALUES;

-- The epoch, read after the transaction has its id. A volatile function reads by a snapshot of its own, so this is one
-- more column of the statement that begins a write, not one more statement.
CREATE FUNCTION cache_epoch() RETURNS text LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_current_xact_id();
    RETURN (SELECT epoch FROM cache_in_force);
END $$;

GRANT SELECT, UPDATE ON cache_in_force TO parlor_booking, parlor_messaging;
GRANT SELECT ON cache_in_force TO parlor_stats;
