-- Owned by the messaging service: customers, and the numbers and ids by which WhatsApp names them.

CREATE TABLE customers (
    salon_id text NOT NULL,
    customer_id uuid NOT NULL DEFAULT gen_random_uuid(),
    contact_name text NOT NULL DEFAULT '',
    contact_named_at timestamptz,
    opted_out boolean NOT NULL DEFAULT false,
    opt_out_changed_at timestamptz,
    opt_out_reason text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT customers_pkey PRIMARY KEY (salon_id, customer_id)
);
COMMENT ON TABLE customers IS 'A customer has one conversation, whose conversation_id is the customer_id; none before the first message.';
COMMENT ON COLUMN customers.contact_name IS 'The name in the salon''s address book; that of the WhatsApp profile is in conversations.';
COMMENT ON COLUMN customers.contact_named_at IS 'When the address book was changed: the newest counts, however late it comes.';
COMMENT ON COLUMN customers.opt_out_changed_at IS 'When the customer opted out, or in again: the newest counts. NULL: never.';
CREATE INDEX idx_customers_salon_created ON customers (salon_id, created_at, customer_id);
COMMENT ON INDEX idx_customers_salon_created IS 'Serves ListCustomers.';
CREATE INDEX idx_customers_salon_opted_out ON customers (salon_id, created_at, customer_id) WHERE opted_out;
COMMENT ON INDEX idx_customers_salon_opted_out IS 'Serves ListCustomers of those who opted out.';
CREATE INDEX idx_customers_salon_name ON customers USING gin (salon_id, contact_name gin_trgm_ops);
COMMENT ON INDEX idx_customers_salon_name IS 'Serves ListCustomers by the query, as a name.';

CREATE TABLE customer_identities (
    salon_id text NOT NULL,
    identity text NOT NULL,
    kind text NOT NULL,
    customer_id uuid NOT NULL,
    seen_at timestamptz NOT NULL,
    CONSTRAINT customer_identities_pkey PRIMARY KEY (salon_id, identity, kind),
    CONSTRAINT customer_identities_customer_id_fkey FOREIGN KEY (salon_id, customer_id)
        REFERENCES customers (salon_id, customer_id) ON DELETE CASCADE,
    CONSTRAINT customer_identities_kind_check CHECK (kind IN ('PHONE_NUMBER', 'USER_ID', 'CONVERSATION_ID'))
);
COMMENT ON TABLE customer_identities IS
    'Each phone number (E.164), user ID and merged conversation_id names one customer of a salon.';
COMMENT ON COLUMN customer_identities.seen_at IS
    'When the identity became the customer''s; the newest of a kind is in their conversation. 1970: not known, but before the newest.';
COMMENT ON CONSTRAINT customer_identities_pkey ON customer_identities IS
    'Finds the customer of a number or an id, and decides that there is one.';
CREATE INDEX idx_customer_identities_customer ON customer_identities (salon_id, customer_id);
COMMENT ON INDEX idx_customer_identities_customer IS 'Finds the identities of a customer.';
CREATE INDEX idx_customer_identities_prefix ON customer_identities (salon_id, identity text_pattern_ops)
    WHERE kind = 'PHONE_NUMBER';
COMMENT ON INDEX idx_customer_identities_prefix IS 'Finds customers by the beginning of their number.';

COMMENT ON COLUMN conversations.phone_number IS 'The customer''s newest number; NULL where WhatsApp does not tell one.';
COMMENT ON COLUMN conversations.user_id IS 'WhatsApp''s business-scoped user id, the customer''s newest. NULL and no phone_number: the customer was erased.';
COMMENT ON COLUMN messages.phone_number IS 'That of the conversation.';
COMMENT ON CONSTRAINT salon_id_phone_number ON conversations IS 'Serves GetConversation.';
-- customer_identities does this now.
DROP INDEX conversations_user_id_key;
DROP INDEX idx_conversations_salon_user;

-- Makes one customer of two: moves the messages, the AI messages and the identities of `merged` to `kept`. The caller
-- has locked out other writers of the salon's customers, and runs name_conversation for `kept` next.
CREATE FUNCTION merge_customers(salon text, kept uuid, merged uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE conversations AS k SET
        status = CASE WHEN 'ACTIVE' IN (k.status, m.status) THEN 'ACTIVE' ELSE k.status END,
        customer_name = CASE
            WHEN coalesce(m.customer_named_at, '-infinity') > coalesce(k.customer_named_at, '-infinity')
            THEN m.customer_name ELSE k.customer_name END,
        customer_named_at = greatest(k.customer_named_at, m.customer_named_at),
        assignee = coalesce(nullif(k.assignee, ''), m.assignee),
        tags = (SELECT coalesce(array_agg(tag ORDER BY tag), '{}') FROM (
            SELECT unnest(k.tags || m.tags) AS tag GROUP BY tag ORDER BY tag LIMIT 50) AS either),
        unread_count = k.unread_count + m.unread_count,
        started_at = CASE WHEN k.has_messages = m.has_messages THEN least(k.started_at, m.started_at)
            WHEN k.has_messages THEN k.started_at ELSE m.started_at END,
        last_message_at = CASE WHEN k.has_messages = m.has_messages THEN greatest(k.last_message_at, m.last_message_at)
            WHEN k.has_messages THEN k.last_message_at ELSE m.last_message_at END,
        has_messages = k.has_messages OR m.has_messages,
        reopened_at = greatest(k.reopened_at, m.reopened_at),
        service_window_expires_at = greatest(k.service_window_expires_at, m.service_window_expires_at),
        revision = k.revision + m.revision
    FROM conversations AS m
    WHERE k.salon_id = salon AND k.conversation_id = kept AND m.salon_id = salon AND m.conversation_id = merged;
    UPDATE messages SET conversation_id = kept WHERE salon_id = salon AND conversation_id = merged;
    UPDATE ai_messages SET conversation_id = kept WHERE salon_id = salon AND conversation_id = merged;
    DELETE FROM conversations WHERE salon_id = salon AND conversation_id = merged;
    UPDATE customers AS k SET
        contact_name = CASE
            WHEN coalesce(m.contact_named_at, '-infinity') > coalesce(k.contact_named_at, '-infinity')
            THEN m.contact_name ELSE k.contact_name END,
        contact_named_at = greatest(k.contact_named_at, m.contact_named_at),
        (opted_out, opt_out_reason) = (
            SELECT newest.opted_out, newest.opt_out_reason FROM customers AS newest
            WHERE newest.salon_id = salon AND newest.customer_id IN (kept, merged)
            ORDER BY newest.opt_out_changed_at DESC NULLS LAST, newest.opted_out DESC LIMIT 1),
        opt_out_changed_at = greatest(k.opt_out_changed_at, m.opt_out_changed_at),
        created_at = least(k.created_at, m.created_at)
    FROM customers AS m
    WHERE k.salon_id = salon AND k.customer_id = kept AND m.salon_id = salon AND m.customer_id = merged;
    UPDATE customer_identities SET customer_id = kept WHERE salon_id = salon AND customer_id = merged;
    INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
        VALUES (salon, merged, 'CONVERSATION_ID', kept, now());
    DELETE FROM customers WHERE salon_id = salon AND customer_id = merged;
END $$;
COMMENT ON FUNCTION merge_customers IS 'Every table with a conversation_id has a statement here.';

-- Gives a conversation and its messages the newest number and user ID of its customer.
CREATE FUNCTION name_conversation(salon text, named uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    newest_number text;
    newest_user text;
BEGIN
    SELECT (array_agg(identity ORDER BY seen_at DESC, identity) FILTER (WHERE kind = 'PHONE_NUMBER'))[1],
        (array_agg(identity ORDER BY seen_at DESC, identity) FILTER (WHERE kind = 'USER_ID'))[1]
        INTO newest_number, newest_user FROM customer_identities WHERE salon_id = salon AND customer_id = named;
    UPDATE conversations SET phone_number = newest_number, user_id = newest_user, revision = revision + 1
        WHERE salon_id = salon AND conversation_id = named
            AND (phone_number, user_id) IS DISTINCT FROM (newest_number, newest_user);
    UPDATE messages SET phone_number = newest_number
        WHERE salon_id = salon AND conversation_id = named AND phone_number IS DISTINCT FROM newest_number;
END $$;

-- The customers of today: conversations whose numbers are variants of one number, or that have the same user ID, belong
-- to one customer.
INSERT INTO customers (salon_id, customer_id, created_at)
SELECT salon_id, conversation_id, started_at FROM conversations WHERE phone_number IS NOT NULL OR user_id IS NOT NULL;

CREATE TEMP TABLE named ON COMMIT DROP AS
SELECT salon_id, conversation_id, last_message_at, of_customer.kind, of_customer.identity FROM conversations, LATERAL (
    VALUES ('USER_ID', user_id), ('PHONE_NUMBER', regexp_replace(regexp_replace(regexp_replace(phone_number,
        '^\+521([0-9]{10})$', '+52\1'),
        '^\+55([1-9][0-9])([16-9][0-9]{7})$', '+55\19\2'),
        '^\+54([1-3][0-9]{9})$', '+549\1'))
) AS of_customer (kind, identity)
WHERE of_customer.identity IS NOT NULL;

INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
SELECT DISTINCT ON (salon_id, identity, kind) salon_id, identity, kind, conversation_id, last_message_at FROM named
ORDER BY salon_id, identity, kind, last_message_at DESC, conversation_id;

DO $$
DECLARE
    pair record;
    kept uuid;
    merged uuid;
BEGIN
    FOR pair IN
        SELECT named.salon_id, i.customer_id AS one, named.conversation_id AS other
        FROM named JOIN customer_identities AS i USING (salon_id, identity, kind)
        WHERE i.customer_id <> named.conversation_id ORDER BY named.last_message_at DESC, named.conversation_id
    LOOP
        SELECT coalesce((
            SELECT customer_id FROM customer_identities
            WHERE salon_id = pair.salon_id AND identity = pair.one::text AND kind = 'CONVERSATION_ID'), pair.one),
            coalesce((
            SELECT customer_id FROM customer_identities
            WHERE salon_id = pair.salon_id AND identity = pair.other::text AND kind = 'CONVERSATION_ID'), pair.other)
            INTO kept, merged;
        IF kept <> merged THEN
            PERFORM merge_customers(pair.salon_id, kept, merged);
        END IF;
    END LOOP;
    PERFORM name_conversation(salon_id, customer_id) FROM customers;
END $$;

-- The table message_changes comes with migration 0019. A new customer needs no separate change: their first message,
-- or what is recorded of them, has one. Nor does an erased one whose conversation has it.
CREATE FUNCTION write_customer_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed constant customers := CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
BEGIN
    IF TG_OP = 'UPDATE' OR NOT EXISTS (
        SELECT FROM conversations AS c
        WHERE c.salon_id = changed.salon_id AND c.conversation_id = changed.customer_id
    ) THEN
        INSERT INTO message_changes (salon_id, type, conversation_id)
        VALUES (changed.salon_id, 'CUSTOMER_UPDATED', changed.customer_id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER message_changes_customer AFTER UPDATE OR DELETE ON customers FOR EACH ROW
    EXECUTE FUNCTION write_customer_change();

GRANT SELECT, INSERT, UPDATE, DELETE ON customers, customer_identities TO parlor_messaging;
GRANT DELETE ON conversations TO parlor_messaging;
