-- Owned by the messaging service: processes of the release before, which know no customers, go on working until they are
-- replaced. Their conversations get a customer.

CREATE UNIQUE INDEX conversations_user_id_key ON conversations (salon_id, user_id) WHERE phone_number IS NULL;
COMMENT ON INDEX conversations_user_id_key IS 'Processes of 0.3 name it in ON CONFLICT. No other statement uses it.';

CREATE FUNCTION identify_conversation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO customers (salon_id, customer_id, created_at)
        VALUES (NEW.salon_id, NEW.conversation_id, NEW.started_at)
        ON CONFLICT ON CONSTRAINT customers_pkey DO NOTHING;
    INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
        SELECT NEW.salon_id, identity, kind, NEW.conversation_id, NEW.last_message_at
        FROM (VALUES ('PHONE_NUMBER', NEW.phone_number), ('USER_ID', NEW.user_id)) AS named (kind, identity)
        WHERE identity IS NOT NULL
        ON CONFLICT ON CONSTRAINT customer_identities_pkey DO NOTHING;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION identify_conversation IS 'Does nothing for those whose customer has the number and the user ID.';
CREATE TRIGGER identify_conversation AFTER INSERT ON conversations FOR EACH ROW
    WHEN (NEW.phone_number IS NOT NULL OR NEW.user_id IS NOT NULL) EXECUTE FUNCTION identify_conversation();
CREATE TRIGGER identify_conversation_again AFTER UPDATE OF phone_number, user_id ON conversations FOR EACH ROW
    WHEN ((OLD.phone_number, OLD.user_id) IS DISTINCT FROM (NEW.phone_number, NEW.user_id)
        AND (NEW.phone_number IS NOT NULL OR NEW.user_id IS NOT NULL)) EXECUTE FUNCTION identify_conversation();

-- Conversations that they have begun since migration 0017.
INSERT INTO customers (salon_id, customer_id, created_at)
SELECT salon_id, conversation_id, started_at FROM conversations WHERE phone_number IS NOT NULL OR user_id IS NOT NULL
ON CONFLICT ON CONSTRAINT customers_pkey DO NOTHING;
INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
SELECT salon_id, identity, of_customer.kind, conversation_id, last_message_at FROM conversations, LATERAL (
    VALUES ('PHONE_NUMBER', phone_number), ('USER_ID', user_id)
) AS of_customer (kind, identity)
WHERE identity IS NOT NULL ORDER BY last_message_at
ON CONFLICT ON CONSTRAINT customer_identities_pkey DO NOTHING;
