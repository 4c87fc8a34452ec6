-- Owned by the messaging service: the feed of changes.

CREATE TABLE message_changes (
    xact_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq bigint GENERATED ALWAYS AS IDENTITY,
    salon_id text NOT NULL,
    type text NOT NULL,
    conversation_id uuid,
    message_id uuid,
    created_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    CONSTRAINT message_changes_pkey PRIMARY KEY (xact_id, seq),
    CONSTRAINT message_changes_type_check CHECK (
        type IN ('MESSAGE_CREATED', 'MESSAGE_UPDATED', 'CONVERSATION_UPDATED', 'CUSTOMER_UPDATED'))
);
COMMENT ON TABLE message_changes IS
    'Each change, written by its transaction. Read in the order (xact_id, seq), and only what no transaction can precede any more. Triggers write the changes of messages and conversations; what changes something else that readers see inserts (salon_id, type, conversation_id, message_id).';
COMMENT ON CONSTRAINT message_changes_pkey ON message_changes IS 'Serves ListMessageChanges of all salons, and WatchMessages.';
CREATE INDEX idx_message_changes_salon ON message_changes (salon_id, xact_id, seq);
COMMENT ON INDEX idx_message_changes_salon IS 'Serves ListMessageChanges of one salon, and message_changes_in_order.';
CREATE INDEX idx_message_changes_created ON message_changes (created_at);
COMMENT ON INDEX idx_message_changes_created IS 'Finds the changes older than 7 days.';

-- As booking_changes_in_order of migration 0015. Nothing precedes the row of a new message, so it needs no look.
CREATE FUNCTION message_changes_in_order() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last xid8;
BEGIN
    SELECT xact_id INTO last FROM message_changes
        WHERE salon_id = NEW.salon_id AND xact_id > NEW.xact_id ORDER BY xact_id DESC LIMIT 1;
    NEW.xact_id := coalesce(last, NEW.xact_id);
    RETURN NEW;
END $$;
CREATE TRIGGER message_changes_in_order BEFORE INSERT ON message_changes
    FOR EACH ROW WHEN (NEW.type <> 'MESSAGE_CREATED') EXECUTE FUNCTION message_changes_in_order();

CREATE FUNCTION write_message_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO message_changes (salon_id, type, conversation_id, message_id)
    SELECT salon_id, TG_ARGV[0], conversation_id, message_id FROM changed ORDER BY created_at, message_id;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION write_message_changes IS
    'Writes a change for each message that a statement inserted or updated, once per statement. Its argument is their type.';
CREATE TRIGGER message_changes_created AFTER INSERT ON messages REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION write_message_changes('MESSAGE_CREATED');
CREATE TRIGGER message_changes_updated AFTER UPDATE ON messages REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION write_message_changes('MESSAGE_UPDATED');

CREATE FUNCTION write_conversation_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed constant conversations := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
BEGIN
    INSERT INTO message_changes (salon_id, type, conversation_id)
    VALUES (changed.salon_id, TG_ARGV[0], changed.conversation_id);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION write_conversation_change IS
    'Writes a change of a conversation. Its argument is the type. The change of a message also stands for what the message changes: last_message_at, the service window, and a higher unread_count.';
CREATE TRIGGER message_changes_conversation AFTER UPDATE ON conversations FOR EACH ROW WHEN (
    (OLD.status, OLD.assignee, OLD.tags) IS DISTINCT FROM (NEW.status, NEW.assignee, NEW.tags)
    OR NEW.unread_count < OLD.unread_count
) EXECUTE FUNCTION write_conversation_change('CONVERSATION_UPDATED');
CREATE TRIGGER message_changes_merged AFTER DELETE ON conversations FOR EACH ROW
    EXECUTE FUNCTION write_conversation_change('CONVERSATION_UPDATED');
CREATE TRIGGER message_changes_customer AFTER UPDATE ON conversations FOR EACH ROW WHEN (
    (OLD.phone_number, OLD.user_id, OLD.customer_name)
    IS DISTINCT FROM (NEW.phone_number, NEW.user_id, NEW.customer_name)
) EXECUTE FUNCTION write_conversation_change('CUSTOMER_UPDATED');

GRANT SELECT, INSERT, DELETE ON message_changes TO parlor_messaging;
