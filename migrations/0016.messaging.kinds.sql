-- Owned by the messaging service: what each kind of webhook item needs, and the order of messages.

ALTER TABLE conversations
    ADD COLUMN kind text NOT NULL DEFAULT 'CUSTOMER',
    ADD COLUMN group_id text,
    ADD COLUMN has_messages boolean NOT NULL DEFAULT true,
    ADD COLUMN reopened_at timestamptz,
    ADD CONSTRAINT conversations_kind_check CHECK (kind IN ('CUSTOMER', 'GROUP')),
    ADD CONSTRAINT conversations_group_check CHECK ((kind = 'GROUP') = (group_id IS NOT NULL));
COMMENT ON COLUMN conversations.group_id IS 'WhatsApp''s ID of the group.';
COMMENT ON COLUMN conversations.has_messages IS
    'False while only reactions have come: their times are replaced by those of the first message.';
COMMENT ON COLUMN conversations.reopened_at IS
    'When the newest message was sent that makes the conversation ACTIVE; NULL for conversations older than this column.';

CREATE UNIQUE INDEX conversations_group_id_key ON conversations (salon_id, group_id) WHERE group_id IS NOT NULL;
COMMENT ON INDEX conversations_group_id_key IS 'A group has one conversation.';

ALTER TABLE messages
    ADD COLUMN counted boolean NOT NULL DEFAULT true,
    ADD COLUMN details jsonb;
COMMENT ON COLUMN messages.message_id IS
    'From this version on a UUIDv7 of created_at and the arrival: messages of the same time are ordered as they came.';
COMMENT ON COLUMN messages.counted IS 'False: the statistics leave it out (history, system messages, calls).';
COMMENT ON COLUMN messages.details IS
    'The fields that only some messages have, as the proto names them: referral, reactions, edited_time... NULL: none.';

CREATE INDEX idx_messages_salon_uncounted ON messages (salon_id, created_at) WHERE NOT counted;
COMMENT ON INDEX idx_messages_salon_uncounted IS
    'Serves GetSalonStats: the messages to subtract from those of idx_messages_salon_created.';

ALTER TABLE message_status_events ADD COLUMN details jsonb;
COMMENT ON COLUMN message_status_events.details IS
    'The fields that only some events have, as the proto names them: error_details, pricing_type... NULL: none.';

CREATE TABLE message_amendments (
    salon_id text NOT NULL,
    whatsapp_id text NOT NULL,
    target_whatsapp_id text NOT NULL,
    kind text NOT NULL,
    direction text NOT NULL,
    phone_number text,
    user_id text,
    content text NOT NULL DEFAULT '',
    media_id text,
    created_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    item json,
    CONSTRAINT message_amendments_pkey PRIMARY KEY (salon_id, whatsapp_id),
    CONSTRAINT message_amendments_kind_check CHECK (kind IN ('REACTION', 'EDIT', 'REVOKE')),
    CONSTRAINT message_amendments_direction_check CHECK (direction IN ('INBOUND', 'OUTBOUND'))
);
COMMENT ON TABLE message_amendments IS
    'Reactions to messages, edits and revokes, kept even before their message comes: they are folded into it in any order.';
COMMENT ON COLUMN message_amendments.content IS 'The emoji, empty if it was taken back; or the new text.';
CREATE INDEX idx_message_amendments_target ON message_amendments (salon_id, target_whatsapp_id);
COMMENT ON INDEX idx_message_amendments_target IS 'Finds what amends a message.';
CREATE INDEX message_amendments_received ON message_amendments (received_at) WHERE item IS NOT NULL;
COMMENT ON INDEX message_amendments_received IS 'Finds the items to remove, by RETENTION_RAW_ITEMS.';

GRANT SELECT, INSERT, UPDATE (item), DELETE ON message_amendments TO parlor_messaging;
GRANT SELECT (counted) ON messages TO parlor_stats;
