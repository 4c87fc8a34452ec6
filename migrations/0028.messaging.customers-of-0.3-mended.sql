-- Owned by the messaging service: conversations that processes of 0.3 begin belong to the customers who are known. Drop
-- the triggers identify_conversation and identify_conversation_again, their function, conversations_user_id_key and
-- idx_conversations_salon_user in 0.5, which no process of 0.3 runs beside.

-- The number by the plan of today: see whatsapp_number in services/phones.py.
CREATE FUNCTION whatsapp_number(number text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT regexp_replace(regexp_replace(regexp_replace(number,
        '^\+521([0-9]{10})$', '+52\1'),
        '^\+55([1-9][0-9])([16-9][0-9]{7})$', '+55\19\2'),
        '^\+54([1-3][0-9]{9})$', '+549\1')
$$;

CREATE OR REPLACE FUNCTION identify_conversation() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    known uuid;
BEGIN
    INSERT INTO customers (salon_id, customer_id, created_at)
        VALUES (NEW.salon_id, NEW.conversation_id, NEW.started_at)
        ON CONFLICT ON CONSTRAINT customers_pkey DO NOTHING;
    -- A known customer without a conversation, of whom there is an opt-out, say, becomes this one.
    FOR known IN
        SELECT DISTINCT i.customer_id FROM customer_identities AS i
        WHERE i.salon_id = NEW.salon_id AND i.customer_id <> NEW.conversation_id AND (
            i.kind = 'PHONE_NUMBER' AND i.identity = whatsapp_number(NEW.phone_number)
            OR i.kind = 'USER_ID' AND i.identity = NEW.user_id
        ) AND NOT EXISTS (
            SELECT FROM conversations AS k WHERE k.salon_id = i.salon_id AND k.conversation_id = i.customer_id
        )
    LOOP
        PERFORM merge_customers(NEW.salon_id, NEW.conversation_id, known);
    END LOOP;
    INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
        SELECT NEW.salon_id, identity, kind, NEW.conversation_id, least(NEW.last_message_at, now())
        FROM (VALUES ('PHONE_NUMBER', whatsapp_number(NEW.phone_number)), ('USER_ID', NEW.user_id))
            AS named (kind, identity)
        WHERE identity IS NOT NULL
        ON CONFLICT ON CONSTRAINT customer_identities_pkey DO NOTHING;
    RETURN NULL;
END $$;

CREATE INDEX idx_conversations_salon_user ON conversations (salon_id, user_id) WHERE user_id IS NOT NULL;
COMMENT ON INDEX idx_conversations_salon_user IS 'Serves EraseCustomer: conversations of processes of 0.3.';

-- No time of an identity or a name is in the future: nothing later could replace it.
UPDATE customer_identities SET seen_at = now() WHERE seen_at > now();
UPDATE conversations SET customer_named_at = now() WHERE customer_named_at > now();

-- As migration 0017: numbers in former spellings become those of today, and conversations with the same number or user
-- ID belong to one customer.
DO $$
DECLARE
    spelled record;
    named record;
    kept uuid;
    owner uuid;
    salons text[];
    renamed uuid[];
BEGIN
    LOCK TABLE conversations, customers, customer_identities IN SHARE ROW EXCLUSIVE MODE;
    FOR spelled IN
        SELECT salon_id, identity, customer_id, seen_at FROM customer_identities
        WHERE kind = 'PHONE_NUMBER' AND identity <> whatsapp_number(identity)
    LOOP
        DELETE FROM customer_identities
            WHERE salon_id = spelled.salon_id AND identity = spelled.identity AND kind = 'PHONE_NUMBER';
        INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at) VALUES (
            spelled.salon_id, whatsapp_number(spelled.identity), 'PHONE_NUMBER', spelled.customer_id, spelled.seen_at
        ) ON CONFLICT ON CONSTRAINT customer_identities_pkey DO NOTHING;
    END LOOP;
    FOR named IN
        SELECT c.salon_id, c.conversation_id, whatsapp_number(c.phone_number) AS phone_number, c.user_id
        FROM conversations AS c
        LEFT JOIN customer_identities AS p ON p.salon_id = c.salon_id AND p.kind = 'PHONE_NUMBER'
            AND p.identity = whatsapp_number(c.phone_number)
        LEFT JOIN customer_identities AS u ON u.salon_id = c.salon_id AND u.kind = 'USER_ID' AND u.identity = c.user_id
        WHERE c.phone_number <> whatsapp_number(c.phone_number)
            OR p.customer_id <> c.conversation_id OR u.customer_id <> c.conversation_id
        ORDER BY c.last_message_at DESC, c.conversation_id
    LOOP
        kept := coalesce((
            SELECT i.customer_id FROM customer_identities AS i WHERE i.salon_id = named.salon_id
                AND i.identity = named.conversation_id::text AND i.kind = 'CONVERSATION_ID'
        ), named.conversation_id);
        FOR owner IN
            SELECT DISTINCT i.customer_id FROM customer_identities AS i
            WHERE i.salon_id = named.salon_id AND i.customer_id <> kept AND (
                i.kind = 'PHONE_NUMBER' AND i.identity = named.phone_number
                OR i.kind = 'USER_ID' AND i.identity = named.user_id
            )
        LOOP
            PERFORM merge_customers(named.salon_id, kept, owner);
        END LOOP;
        salons := salons || named.salon_id;
        renamed := renamed || kept;
    END LOOP;
    PERFORM name_conversation(salon, customer) FROM unnest(salons, renamed) AS merged (salon, customer);
END $$;
