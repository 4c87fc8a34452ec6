-- Owned by the messaging service: senders of webhook failures, and what the retention job needs.

ALTER TABLE webhook_failures
    ADD COLUMN phone_number text,
    ADD COLUMN user_id text;
COMMENT ON COLUMN webhook_failures.phone_number IS
    'The sender, if the webhook body names one: the item itself may not.';
COMMENT ON INDEX idx_webhook_failures_salon_created IS
    'Serves ListWebhookFailures, and finds the items to delete, by RETENTION_FAILURES.';

ALTER TABLE raw_messages ADD COLUMN received_at timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN raw_messages.received_at IS 'When the item was received. Items older than this column have the time of the migration.';

CREATE INDEX raw_messages_received ON raw_messages (received_at);
COMMENT ON INDEX raw_messages_received IS 'Finds the items to delete, by RETENTION_RAW_ITEMS.';

CREATE INDEX ai_messages_salon_text ON ai_messages (salon_id, created_at) WHERE content <> '';
COMMENT ON INDEX ai_messages_salon_text IS 'Finds the texts to empty, by RETENTION_AI_MESSAGES.';

ALTER TABLE message_status_events ADD COLUMN early_since timestamptz;
COMMENT ON COLUMN message_status_events.early_since IS 'Set to the time of arrival if the status came before its message.';

CREATE INDEX message_status_events_early ON message_status_events (early_since) WHERE early_since IS NOT NULL;
COMMENT ON INDEX message_status_events_early IS 'Finds the statuses whose message never came.';

UPDATE message_status_events AS e SET early_since = now()
WHERE NOT EXISTS (SELECT FROM messages AS m WHERE m.salon_id = e.salon_id AND m.whatsapp_id = e.whatsapp_id);

GRANT UPDATE (early_since) ON message_status_events TO parlor_messaging;
