-- Owned by the messaging service: hourly sums, so that statistics need not read every row. docs/decisions/0061 says why
-- they are exact at every moment.

CREATE TABLE rollups (
    id boolean NOT NULL DEFAULT true,
    horizon timestamptz NOT NULL DEFAULT '-infinity',
    sealed_to timestamptz NOT NULL DEFAULT '-infinity',
    CONSTRAINT rollups_pkey PRIMARY KEY (id),
    CONSTRAINT rollups_one_row_check CHECK (id),
    CONSTRAINT rollups_sealed_check CHECK (sealed_to <= horizon)
);
COMMENT ON TABLE rollups IS 'One row: how far messages, conversations and AI messages are summed.';
COMMENT ON COLUMN rollups.horizon IS 'A write of a row older than this leaves a delta.';
COMMENT ON COLUMN rollups.sealed_to IS 'Rows older than this are in the hourly sums and their deltas.';
INSERT INTO rollups DEFAULT VALUES;
ANALYZE rollups; -- the planner takes an unknown table for a thousand rows

CREATE TABLE message_hours (
    salon_id text NOT NULL,
    hour timestamptz NOT NULL,
    direction text NOT NULL,
    currency_code text NOT NULL,
    messages bigint NOT NULL,
    cost_micros numeric NOT NULL,
    CONSTRAINT message_hours_pkey PRIMARY KEY (salon_id, hour, direction, currency_code)
        INCLUDE (messages, cost_micros)
);
COMMENT ON COLUMN message_hours.messages IS 'Those that are counted. The cost is of all.';
COMMENT ON COLUMN message_hours.currency_code IS 'Empty: messages without a cost.';
COMMENT ON CONSTRAINT message_hours_pkey ON message_hours IS 'Serves GetSalonStats and GetMessageDirectionStats.';

CREATE TABLE message_deltas (
    salon_id text NOT NULL,
    created_at timestamptz NOT NULL,
    direction text NOT NULL,
    currency_code text NOT NULL,
    messages bigint NOT NULL,
    cost_micros numeric NOT NULL
);
COMMENT ON TABLE message_deltas IS
    'Changes to messages older than rollups.horizon: +1 for a new row, -1 for the old one, in the transaction of the change.';
CREATE INDEX idx_message_deltas_salon_created ON message_deltas (salon_id, created_at);
COMMENT ON INDEX idx_message_deltas_salon_created IS 'Serves GetSalonStats and GetMessageDirectionStats.';

CREATE TABLE conversation_hours (
    salon_id text NOT NULL,
    hour timestamptz NOT NULL,
    conversations bigint NOT NULL,
    CONSTRAINT conversation_hours_pkey PRIMARY KEY (salon_id, hour) INCLUDE (conversations)
);
COMMENT ON CONSTRAINT conversation_hours_pkey ON conversation_hours IS 'Serves GetSalonStats.';

CREATE TABLE conversation_deltas (
    salon_id text NOT NULL,
    started_at timestamptz NOT NULL,
    conversations bigint NOT NULL
);
COMMENT ON TABLE conversation_deltas IS 'The same for conversations.';
CREATE INDEX idx_conversation_deltas_salon_started ON conversation_deltas (salon_id, started_at);
COMMENT ON INDEX idx_conversation_deltas_salon_started IS 'Serves GetSalonStats.';

CREATE TABLE ai_message_hours (
    salon_id text NOT NULL,
    hour timestamptz NOT NULL,
    model text NOT NULL,
    currency_code text NOT NULL,
    messages bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_micros numeric NOT NULL,
    latency_ms bigint NOT NULL,
    max_latency_ms integer NOT NULL,
    CONSTRAINT ai_message_hours_pkey PRIMARY KEY (salon_id, hour, model, currency_code)
);
COMMENT ON COLUMN ai_message_hours.currency_code IS 'Empty: AI messages without a cost.';
COMMENT ON CONSTRAINT ai_message_hours_pkey ON ai_message_hours IS 'Serves GetAiAnalytics.';

CREATE TABLE ai_message_changes (
    salon_id text NOT NULL,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE ai_message_changes IS
    'The created_at of AI messages that were changed behind rollups.horizon. No delta can lower a maximum: these hours are read as rows until they are summed again.';
CREATE INDEX idx_ai_message_changes_salon_created ON ai_message_changes (salon_id, created_at);
COMMENT ON INDEX idx_ai_message_changes_salon_created IS 'Serves GetAiAnalytics.';

CREATE INDEX idx_ai_messages_salon_booking ON ai_messages (salon_id, created_at) INCLUDE (model, booking_code)
    WHERE booking_code IS NOT NULL;
COMMENT ON INDEX idx_ai_messages_salon_booking IS 'Serves the bookings of GetAiAnalytics: different codes do not add up.';

-- Statistics read the sums by index alone, which takes pages that vacuum has seen since their last change.
ALTER TABLE message_hours SET (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE conversation_hours SET (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_scale_factor = 0.02);

-- Each trigger reads the horizon by its own query, whose snapshot is later than the ID of the transaction that writes the
-- row: the job waits for the transactions with earlier IDs. Under REPEATABLE READ the snapshot may be older than the ID,
-- so such a transaction always leaves a delta. Row triggers: they also see the rows of each statement in a WITH.
CREATE FUNCTION leave_message_delta() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed'
        AND least(OLD.created_at, NEW.created_at) >= (SELECT horizon FROM rollups) THEN
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO message_deltas (salon_id, created_at, direction, currency_code, messages, cost_micros)
        VALUES (OLD.salon_id, OLD.created_at, OLD.direction,
            CASE WHEN OLD.cost_micros > 0 THEN OLD.currency_code ELSE '' END, -OLD.counted::int, -OLD.cost_micros);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO message_deltas (salon_id, created_at, direction, currency_code, messages, cost_micros)
        VALUES (NEW.salon_id, NEW.created_at, NEW.direction,
            CASE WHEN NEW.cost_micros > 0 THEN NEW.currency_code ELSE '' END, NEW.counted::int, NEW.cost_micros);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER message_delta AFTER INSERT OR DELETE ON messages
    FOR EACH ROW EXECUTE FUNCTION leave_message_delta();
CREATE TRIGGER message_delta_of_update AFTER UPDATE ON messages
    FOR EACH ROW WHEN (
        (OLD.salon_id, OLD.created_at, OLD.direction, OLD.counted, OLD.cost_micros, OLD.currency_code)
        IS DISTINCT FROM (NEW.salon_id, NEW.created_at, NEW.direction, NEW.counted, NEW.cost_micros, NEW.currency_code)
    ) EXECUTE FUNCTION leave_message_delta();

CREATE FUNCTION leave_conversation_delta() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed'
        AND least(OLD.started_at, NEW.started_at) >= (SELECT horizon FROM rollups) THEN
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO conversation_deltas (salon_id, started_at, conversations)
        VALUES (OLD.salon_id, OLD.started_at, -1);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO conversation_deltas (salon_id, started_at, conversations)
        VALUES (NEW.salon_id, NEW.started_at, 1);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER conversation_delta AFTER INSERT OR DELETE ON conversations
    FOR EACH ROW EXECUTE FUNCTION leave_conversation_delta();
CREATE TRIGGER conversation_delta_of_update AFTER UPDATE ON conversations
    FOR EACH ROW WHEN ((OLD.salon_id, OLD.started_at) IS DISTINCT FROM (NEW.salon_id, NEW.started_at))
    EXECUTE FUNCTION leave_conversation_delta();

CREATE FUNCTION leave_ai_message_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') = 'read committed'
        AND least(OLD.created_at, NEW.created_at) >= (SELECT horizon FROM rollups) THEN
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO ai_message_changes (salon_id, created_at) VALUES (OLD.salon_id, OLD.created_at);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO ai_message_changes (salon_id, created_at) VALUES (NEW.salon_id, NEW.created_at);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ai_message_change AFTER INSERT OR DELETE ON ai_messages
    FOR EACH ROW EXECUTE FUNCTION leave_ai_message_change();
CREATE TRIGGER ai_message_change_of_update AFTER UPDATE ON ai_messages
    FOR EACH ROW WHEN (
        (OLD.salon_id, OLD.created_at, OLD.model, OLD.cost_micros, OLD.currency_code, OLD.prompt_tokens,
            OLD.completion_tokens, OLD.latency_ms)
        IS DISTINCT FROM (NEW.salon_id, NEW.created_at, NEW.model, NEW.cost_micros, NEW.currency_code,
            NEW.prompt_tokens, NEW.completion_tokens, NEW.latency_ms)
    ) EXECUTE FUNCTION leave_ai_message_change();

-- TRUNCATE calls no row triggers: the sums of no rows are no sums.
CREATE FUNCTION truncate_rollup() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('TRUNCATE %I, %I', TG_ARGV[0], TG_ARGV[1]);
    RETURN NULL;
END $$;
CREATE TRIGGER truncate_message_rollup AFTER TRUNCATE ON messages
    FOR EACH STATEMENT EXECUTE FUNCTION truncate_rollup('message_hours', 'message_deltas');
CREATE TRIGGER truncate_conversation_rollup AFTER TRUNCATE ON conversations
    FOR EACH STATEMENT EXECUTE FUNCTION truncate_rollup('conversation_hours', 'conversation_deltas');
CREATE TRIGGER truncate_ai_message_rollup AFTER TRUNCATE ON ai_messages
    FOR EACH STATEMENT EXECUTE FUNCTION truncate_rollup('ai_message_hours', 'ai_message_changes');

-- The triggers run with the rights of the login that writes the row: without INSERT here it could write no message.
GRANT SELECT, UPDATE ON rollups TO parlor_messaging;
GRANT SELECT, INSERT, UPDATE ON message_hours, conversation_hours, ai_message_hours TO parlor_messaging;
GRANT SELECT, INSERT, DELETE ON message_deltas, conversation_deltas, ai_message_changes TO parlor_messaging;
GRANT SELECT ON rollups, message_hours, message_deltas, conversation_hours, conversation_deltas, ai_message_hours,
    ai_message_changes TO parlor_stats;
