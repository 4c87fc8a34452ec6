-- Owned by the messaging service: the trigger of 0028 reads the identities of a new conversation by their key. Its
-- condition with OR read all identities of a salon until the first ANALYZE.

CREATE OR REPLACE FUNCTION identify_conversation() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    number constant text := whatsapp_number(NEW.phone_number);
    known uuid;
BEGIN
    INSERT INTO customers (salon_id, customer_id, created_at)
        VALUES (NEW.salon_id, NEW.conversation_id, NEW.started_at)
        ON CONFLICT ON CONSTRAINT customers_pkey DO NOTHING;
    -- A known customer without a conversation, of whom there is an opt-out, say, becomes this one.
    FOR known IN
        SELECT DISTINCT customer_id FROM unnest(ARRAY[(
            SELECT i.customer_id FROM customer_identities AS i
            WHERE i.salon_id = NEW.salon_id AND i.identity = number AND i.kind = 'PHONE_NUMBER'
        ), (
            SELECT i.customer_id FROM customer_identities AS i
            WHERE i.salon_id = NEW.salon_id AND i.identity = NEW.user_id AND i.kind = 'USER_ID'
        )]) AS of_identity (customer_id)
        WHERE customer_id <> NEW.conversation_id AND NOT EXISTS (
            SELECT FROM conversations AS k WHERE k.salon_id = NEW.salon_id AND k.conversation_id = of_identity.customer_id
        )
    LOOP
        PERFORM merge_customers(NEW.salon_id, NEW.conversation_id, known);
    END LOOP;
    INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
        SELECT NEW.salon_id, identity, kind, NEW.conversation_id, least(NEW.last_message_at, now())
        FROM (VALUES ('PHONE_NUMBER', number), ('USER_ID', NEW.user_id)) AS named (kind, identity)
        WHERE identity IS NOT NULL
        ON CONFLICT ON CONSTRAINT customer_identities_pkey DO NOTHING;
    RETURN NULL;
END $$;
