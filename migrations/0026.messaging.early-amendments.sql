-- Owned by the messaging service: reactions, edits and revokes whose message never comes are deleted.

ALTER TABLE message_amendments ADD COLUMN early_since timestamptz;
COMMENT ON COLUMN message_amendments.early_since IS
    'Set to the time of arrival if the reaction, edit or revoke came before its message.';

CREATE INDEX message_amendments_early ON message_amendments (early_since) WHERE early_since IS NOT NULL;
COMMENT ON INDEX message_amendments_early IS 'Finds the reactions, edits and revokes whose message never came.';

UPDATE message_amendments AS a SET early_since = now()
WHERE NOT EXISTS (
    SELECT FROM messages AS m WHERE m.salon_id = a.salon_id AND m.whatsapp_id = a.target_whatsapp_id
);

GRANT UPDATE (early_since) ON message_amendments TO parlor_messaging;
