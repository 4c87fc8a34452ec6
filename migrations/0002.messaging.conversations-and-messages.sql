-- Owned by the messaging service. No foreign key leads to salons, which the booking service owns.

CREATE TABLE conversations (
    salon_id text NOT NULL,
    conversation_id uuid NOT NULL DEFAULT gen_random_uuid(),
    phone_number text NOT NULL,
    status text NOT NULL DEFAULT 'ACTIVE',
    revision integer NOT NULL DEFAULT 1,
    started_at timestamptz NOT NULL DEFAULT now(),
    last_message_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT conversations_pkey PRIMARY KEY (salon_id, conversation_id),
    CONSTRAINT salon_id_phone_number UNIQUE (salon_id, phone_number),
    CONSTRAINT conversations_status_check CHECK (status IN ('ACTIVE', 'CLOSED', 'ARCHIVED'))
);
COMMENT ON CONSTRAINT salon_id_phone_number ON conversations IS 'Serves GetConversation, and finds the conversation of a message.';

CREATE INDEX idx_conversations_salon_status_last ON conversations (salon_id, status, last_message_at);
COMMENT ON INDEX idx_conversations_salon_status_last IS 'Serves ListConversations.';

CREATE INDEX idx_conversations_salon_started ON conversations (salon_id, started_at);
COMMENT ON INDEX idx_conversations_salon_started IS 'Serves ListConversationStats, and the conversations of GetSalonStats.';

CREATE TABLE messages (
    salon_id text NOT NULL,
    message_id uuid NOT NULL DEFAULT gen_random_uuid(),
    conversation_id uuid NOT NULL,
    phone_number text NOT NULL,
    direction text NOT NULL,
    whatsapp_id text,
    type text NOT NULL,
    content text NOT NULL DEFAULT '',
    status text NOT NULL,
    cost_micros bigint NOT NULL DEFAULT 0,
    currency_code text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT messages_pkey PRIMARY KEY (salon_id, message_id),
    CONSTRAINT whatsapp_id UNIQUE (salon_id, whatsapp_id),
    CONSTRAINT messages_conversation_id_fkey FOREIGN KEY (salon_id, conversation_id)
        REFERENCES conversations (salon_id, conversation_id),
    CONSTRAINT messages_direction_check CHECK (direction IN ('INBOUND', 'OUTBOUND')),
    CONSTRAINT messages_status_check CHECK (status IN ('PENDING', 'SENT', 'DELIVERED', 'READ', 'FAILED', 'RECEIVED')),
    CONSTRAINT messages_cost_check CHECK (cost_micros = 0 OR (cost_micros > 0 AND currency_code IS NOT NULL))
);
COMMENT ON COLUMN messages.created_at IS 'When the message was sent.';
COMMENT ON CONSTRAINT whatsapp_id ON messages IS 'Finds a repeat, and the message of a status.';

CREATE INDEX idx_messages_salon_created ON messages (salon_id, created_at);
COMMENT ON INDEX idx_messages_salon_created IS 'Serves ListMessages, GetMessageDirectionStats, and the messages of GetSalonStats.';

CREATE INDEX idx_messages_phone_salon ON messages (phone_number, salon_id);
COMMENT ON INDEX idx_messages_phone_salon IS 'Serves ListMessages by phone_number.';

CREATE INDEX idx_messages_conversation_created ON messages (conversation_id, created_at);
COMMENT ON INDEX idx_messages_conversation_created IS 'Serves GetConversation, and ListMessages by conversation_id.';

CREATE INDEX idx_messages_direction_salon ON messages (direction, salon_id);
COMMENT ON INDEX idx_messages_direction_salon IS 'Counts all messages of a salon in one direction.';

-- A conversation belongs to one salon: without knowing so the planner takes the rows of both for very few, and fetches
-- all of them by two indexes where the newest ten by one would do.
CREATE STATISTICS messages_conversation_salon (dependencies) ON conversation_id, salon_id FROM messages;

CREATE TABLE message_status_events (
    salon_id text NOT NULL,
    whatsapp_id text NOT NULL,
    status text NOT NULL,
    occurred_at timestamptz NOT NULL,
    CONSTRAINT message_status_events_pkey PRIMARY KEY (salon_id, whatsapp_id, status),
    CONSTRAINT message_status_events_status_check CHECK (status IN ('SENT', 'DELIVERED', 'READ', 'FAILED'))
);
COMMENT ON TABLE message_status_events IS 'What WhatsApp said of a message, even before the message is known.';

CREATE TABLE ai_messages (
    salon_id text NOT NULL,
    ai_message_id uuid NOT NULL DEFAULT gen_random_uuid(),
    conversation_id uuid NOT NULL,
    model text NOT NULL,
    role text NOT NULL,
    content text NOT NULL DEFAULT '',
    prompt_tokens integer NOT NULL DEFAULT 0,
    completion_tokens integer NOT NULL DEFAULT 0,
    cost_micros bigint NOT NULL DEFAULT 0,
    currency_code text,
    latency_ms integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ai_messages_pkey PRIMARY KEY (salon_id, ai_message_id),
    CONSTRAINT ai_messages_conversation_id_fkey FOREIGN KEY (salon_id, conversation_id)
        REFERENCES conversations (salon_id, conversation_id),
    CONSTRAINT ai_messages_role_check CHECK (role IN ('SYSTEM', 'USER', 'ASSISTANT', 'TOOL')),
    CONSTRAINT ai_messages_cost_check CHECK (cost_micros = 0 OR (cost_micros > 0 AND currency_code IS NOT NULL))
);

CREATE INDEX idx_ai_messages_conversation_created ON ai_messages (conversation_id, created_at);
COMMENT ON INDEX idx_ai_messages_conversation_created IS 'Serves ListAiMessages.';

CREATE INDEX idx_ai_messages_salon_created ON ai_messages (salon_id, created_at);
COMMENT ON INDEX idx_ai_messages_salon_created IS 'Serves GetAiAnalytics.';

CREATE STATISTICS ai_messages_conversation_salon (dependencies) ON conversation_id, salon_id FROM ai_messages;

CREATE TABLE messaging_requests (
    salon_id text NOT NULL,
    request_id uuid NOT NULL,
    request_hash bytea NOT NULL,
    reply bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT messaging_requests_pkey PRIMARY KEY (salon_id, request_id)
);
COMMENT ON TABLE messaging_requests IS 'Replies given under a request_id, kept for 24 h.';
CREATE INDEX messaging_requests_created ON messaging_requests (created_at);
COMMENT ON INDEX messaging_requests_created IS 'Finds the rows older than 24 h.';

GRANT SELECT, INSERT, UPDATE ON conversations, messages, ai_messages TO parlor_messaging;
GRANT SELECT, INSERT ON message_status_events TO parlor_messaging;
GRANT SELECT, INSERT, UPDATE, DELETE ON messaging_requests TO parlor_messaging;
GRANT SELECT ON conversations, messages, ai_messages TO parlor_stats;
