-- Owned by the messaging service: webhook items of phone_number_ids that belong to no salon.

ALTER TABLE webhook_failures ADD COLUMN phone_number_id text NOT NULL DEFAULT '';
COMMENT ON COLUMN webhook_failures.salon_id IS 'Empty: the item came for a phone_number_id that belongs to no salon.';
COMMENT ON COLUMN webhook_failures.phone_number_id IS 'Which one that was; empty if the salon is known, or the body names none.';
