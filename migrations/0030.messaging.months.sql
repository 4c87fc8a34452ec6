-- Owned by the messaging service: what messages need once they are partitioned by month (`parlor partition`), and what
-- stays of months that left (`parlor archive`). docs/decisions/0067.

-- A unique index of a partitioned table must have its key, created_at. So the whatsapp_ids are unique here.
CREATE TABLE message_names (
    salon_id text NOT NULL,
    name uuid NOT NULL,
    CONSTRAINT message_names_pkey PRIMARY KEY (salon_id, name)
);
COMMENT ON TABLE message_names IS
    'The whatsapp_id of each message, also of archived ones: no message comes twice. Empty until messages are partitioned.';
COMMENT ON COLUMN message_names.name IS 'message_name(whatsapp_id)';

CREATE FUNCTION message_name(whatsapp_id text) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN encode(substring(sha256(convert_to(whatsapp_id, 'UTF8')) FOR 16), 'hex')::uuid;
COMMENT ON FUNCTION message_name IS 'Half of the SHA-256: as few bytes as a whatsapp_id can be told from all others by.';

-- A message that moves to another month is deleted and inserted.
CREATE FUNCTION name_message() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' AND OLD.whatsapp_id IS NOT NULL THEN
        DELETE FROM message_names WHERE salon_id = OLD.salon_id AND name = message_name(OLD.whatsapp_id);
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    IF NEW.whatsapp_id IS NOT NULL THEN
        INSERT INTO message_names (salon_id, name) VALUES (NEW.salon_id, message_name(NEW.whatsapp_id))
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RAISE unique_violation USING CONSTRAINT = 'whatsapp_id', TABLE = 'messages',
                MESSAGE = 'the salon has a message with this whatsapp_id';
        END IF;
    END IF;
    RETURN NEW;
END $$;

CREATE TABLE message_archives (
    name text NOT NULL,
    start_time timestamptz,
    end_time timestamptz NOT NULL,
    rows bigint,
    sha256 text,
    erasure_id bigint NOT NULL DEFAULT 0,
    archived_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT message_archives_pkey PRIMARY KEY (name),
    CONSTRAINT message_archives_written_check CHECK ((rows IS NULL) = (sha256 IS NULL))
);
COMMENT ON TABLE message_archives IS 'The months whose messages are in files of `parlor archive`, oldest first.';
COMMENT ON COLUMN message_archives.start_time IS 'NULL: all messages before end_time.';
COMMENT ON COLUMN message_archives.sha256 IS 'Of the file. NULL: its messages still are in a table of this name.';
COMMENT ON COLUMN message_archives.erasure_id IS 'The last row of message_erasures that the file obeys.';

CREATE TABLE message_erasures (
    salon_id text NOT NULL,
    erasure_id bigint GENERATED ALWAYS AS IDENTITY,
    conversation_ids uuid[] NOT NULL,
    names bytea[] NOT NULL,
    CONSTRAINT message_erasures_pkey PRIMARY KEY (erasure_id)
);
COMMENT ON TABLE message_erasures IS 'Erasures of customers that some file of message_archives does not obey yet.';
COMMENT ON COLUMN message_erasures.names IS
    'SHA-256 of the salon''s salt and each number and user ID of the customers, who wrote in groups, too. A number can be guessed from it: the row is deleted once all files obey it.';
CREATE INDEX message_erasures_salon ON message_erasures (salon_id);
COMMENT ON INDEX message_erasures_salon IS 'Tells whether events of a salon''s archived messages may be those of an erased customer.';

-- The sums of an archived month, for periods that begin or end within an hour.
CREATE TABLE message_quarters (
    salon_id text NOT NULL,
    quarter timestamptz NOT NULL,
    direction text NOT NULL,
    currency_code text NOT NULL,
    messages bigint NOT NULL,
    cost_micros numeric NOT NULL,
    archive text NOT NULL
);
COMMENT ON TABLE message_quarters IS 'Counts and costs of the messages of archived months, by quarter of an hour.';
COMMENT ON COLUMN message_quarters.archive IS 'Its sums count while rollups.archives has this name.';
CREATE INDEX idx_message_quarters_salon ON message_quarters (salon_id, quarter);
COMMENT ON INDEX idx_message_quarters_salon IS 'Serves GetSalonStats and GetMessageDirectionStats.';
CREATE INDEX message_quarters_archive ON message_quarters (archive);
COMMENT ON INDEX message_quarters_archive IS 'Finds the sums of a month that is archived again, or restored.';

ALTER TABLE rollups ADD COLUMN archives text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN rollups.archives IS 'The names in message_archives: their messages are not in the table messages.';

GRANT SELECT, INSERT, DELETE ON message_names TO parlor_messaging;
GRANT SELECT ON message_archives TO parlor_messaging;
GRANT SELECT, INSERT ON message_erasures TO parlor_messaging;
GRANT SELECT ON message_quarters TO parlor_stats;
