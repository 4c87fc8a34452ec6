-- Owned by the messaging service: all that a webhook body holds, who a conversation belongs to, and search.

CREATE EXTENSION IF NOT EXISTS btree_gin;
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE EXTENSION IF NOT EXISTS unaccent;

-- Conversations

ALTER TABLE conversations
    ALTER COLUMN phone_number DROP NOT NULL,
    ADD COLUMN user_id text,
    ADD COLUMN customer_name text NOT NULL DEFAULT '',
    ADD COLUMN customer_named_at timestamptz,
    ADD COLUMN assignee text NOT NULL DEFAULT '',
    ADD COLUMN tags text[] NOT NULL DEFAULT '{}',
    ADD COLUMN unread_count integer NOT NULL DEFAULT 0,
    ADD COLUMN service_window_expires_at timestamptz,
    ADD CONSTRAINT conversations_unread_check CHECK (unread_count >= 0);
COMMENT ON COLUMN conversations.user_id IS 'WhatsApp''s business-scoped user id.';
COMMENT ON COLUMN conversations.customer_named_at IS 'When the message was sent that told the customer_name: the newest counts, however late it comes.';
COMMENT ON COLUMN conversations.phone_number IS 'NULL where WhatsApp does not tell it; without a user_id too: the customer was erased.';

UPDATE conversations AS c SET service_window_expires_at = newest.created_at + interval '24 hours'
FROM (
    SELECT salon_id, conversation_id, max(created_at) AS created_at FROM messages
    WHERE direction = 'INBOUND' GROUP BY salon_id, conversation_id
) AS newest
WHERE c.salon_id = newest.salon_id AND c.conversation_id = newest.conversation_id;

CREATE UNIQUE INDEX conversations_user_id_key ON conversations (salon_id, user_id) WHERE phone_number IS NULL;
COMMENT ON INDEX conversations_user_id_key IS 'A customer without a phone number has one conversation.';

CREATE INDEX idx_conversations_salon_user ON conversations (salon_id, user_id) WHERE user_id IS NOT NULL;
COMMENT ON INDEX idx_conversations_salon_user IS 'Finds the conversation of a user_id.';

CREATE INDEX idx_conversations_salon_unread_last ON conversations (salon_id, last_message_at) WHERE unread_count > 0;
COMMENT ON INDEX idx_conversations_salon_unread_last IS 'Serves ListConversations of the unread.';

CREATE INDEX idx_conversations_salon_assignee_last ON conversations (salon_id, assignee, last_message_at) WHERE assignee <> '';
COMMENT ON INDEX idx_conversations_salon_assignee_last IS 'Serves ListConversations by assignee.';

CREATE INDEX idx_conversations_salon_tags ON conversations USING gin (salon_id, tags);
COMMENT ON INDEX idx_conversations_salon_tags IS 'Serves ListConversations by tag.';

-- Messages

-- Search knows the grammar of these languages; a configuration each, which takes accents off first. A text is no HTML:
-- what stands between < and > is words.
DO $$
DECLARE
    grammars constant jsonb := '{
        "ar": "arabic", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
        "fi": "finnish", "fr": "french", "hi": "hindi", "hu": "hungarian", "id": "indonesian", "it": "italian",
        "nl": "dutch", "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sv": "swedish",
        "tr": "turkish"}';
    plain constant text := 'translate($2, ''<>'', ''  '')';
    code text;
    grammar text;
    vectors text := '';
    queries text := '';
    snippets text := '';
BEGIN
    CREATE TEXT SEARCH CONFIGURATION messages_simple (COPY = simple);
    ALTER TEXT SEARCH CONFIGURATION messages_simple ALTER MAPPING FOR hword, hword_part, word WITH unaccent, simple;
    FOR code, grammar IN SELECT key, value FROM jsonb_each_text(grammars) ORDER BY key LOOP
        EXECUTE format('CREATE TEXT SEARCH CONFIGURATION messages_%s (COPY = %I)', code, grammar);
        EXECUTE format('ALTER TEXT SEARCH CONFIGURATION messages_%s
            ALTER MAPPING FOR hword, hword_part, word WITH unaccent, %I', code, grammar || '_stem');
        vectors := vectors || format('WHEN %L THEN to_tsvector(''messages_%s'', %s) ', code, code, plain);
        queries := queries || format('WHEN %L THEN websearch_to_tsquery(''messages_%s'', %s) ', code, code, plain);
        snippets := snippets || format('WHEN %L THEN ts_headline(''messages_%s'', escaped, query) ', code, code);
    END LOOP;
    EXECUTE 'CREATE FUNCTION message_vector(language text, content text) RETURNS tsvector
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN CASE language ' || vectors || format('ELSE to_tsvector(''messages_simple'', %s) END', plain);
    EXECUTE 'CREATE FUNCTION message_query(language text, query text) RETURNS tsquery
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN CASE language ' || queries || format('ELSE websearch_to_tsquery(''messages_simple'', %s) END', plain);
    EXECUTE 'CREATE FUNCTION message_snippet(language text, escaped text, query tsquery) RETURNS text
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN CASE language ' || snippets || 'ELSE ts_headline(''messages_simple'', escaped, query) END';
END $$;
COMMENT ON FUNCTION message_vector IS
    'The words of a text by the grammar of its language. Names its configurations, not a regconfig column: pg_upgrade refuses those.';
COMMENT ON FUNCTION message_snippet IS 'A part of a text with what was found between <b> and </b>, which the text itself must not have.';

ALTER TABLE messages
    ALTER COLUMN phone_number DROP NOT NULL,
    ADD COLUMN media_id text,
    ADD COLUMN reply_to_whatsapp_id text,
    ADD COLUMN error_code integer,
    ADD COLUMN error_title text,
    ADD COLUMN pricing_category text,
    ADD COLUMN billable boolean,
    ADD COLUMN conversation_origin text,
    ADD COLUMN recorded_cost_micros bigint,
    ADD COLUMN recorded_currency_code text,
    ADD COLUMN language text NOT NULL DEFAULT '',
    ADD COLUMN search tsvector NOT NULL GENERATED ALWAYS AS (message_vector(language, content)) STORED;
COMMENT ON COLUMN messages.recorded_cost_micros IS
    'What the message cost before any status said a price; NULL: cost_micros, which none has changed yet.';
COMMENT ON COLUMN messages.language IS 'The salon''s language when the message came, ISO 639-1; empty: no grammar.';

CREATE INDEX idx_messages_salon_search ON messages USING gin (salon_id, search);
COMMENT ON INDEX idx_messages_salon_search IS 'Serves SearchMessages.';

CREATE INDEX idx_messages_salon_words ON messages USING gin (salon_id, (strip(search)::text) gin_trgm_ops);
COMMENT ON INDEX idx_messages_salon_words IS 'Serves SearchMessages where no word is found: similar ones are.';

CREATE FUNCTION similar_query(salon_id text, query tsquery) RETURNS tsquery LANGUAGE sql STABLE
    SET pg_trgm.word_similarity_threshold = 0.28
    RETURN (
        SELECT string_agg('''' || replace(replace(nearest.word, '\', '\\'), '''', '''''') || '''', ' | ')::tsquery
        FROM (
            SELECT lexeme AS word FROM unnest(to_tsvector('simple', nullif(querytree(query), 'T')))
            ORDER BY length(lexeme) DESC, lexeme LIMIT 8
        ) AS asked CROSS JOIN LATERAL (
            SELECT lexeme AS word FROM (
                SELECT m.search FROM messages AS m
                WHERE m.salon_id = similar_query.salon_id AND asked.word <% strip(m.search)::text LIMIT 2000
            ) AS sample CROSS JOIN LATERAL unnest(sample.search)
            WHERE similarity(asked.word, lexeme) >= 0.2
            ORDER BY similarity(asked.word, lexeme) DESC, lexeme LIMIT 1
        ) AS nearest
    );
COMMENT ON FUNCTION similar_query IS
    'Finds, for each of the 8 longest words that a query wants, the most similar one in 2000 messages of the salon; NULL if there is none. Two letters swapped in a word of six still are similar by 0.28.';

CREATE TABLE raw_messages (
    salon_id text NOT NULL,
    message_id uuid NOT NULL,
    item json NOT NULL,
    CONSTRAINT raw_messages_pkey PRIMARY KEY (salon_id, message_id),
    CONSTRAINT raw_messages_message_id_fkey FOREIGN KEY (salon_id, message_id)
        REFERENCES messages (salon_id, message_id)
);
COMMENT ON TABLE raw_messages IS
    'The webhook items that messages came in; apart from them, so that lists and counts read narrow rows. json takes \u0000, jsonb does not.';

ALTER TABLE message_status_events
    DROP CONSTRAINT message_status_events_pkey,
    ADD CONSTRAINT message_status_events_pkey PRIMARY KEY (salon_id, whatsapp_id, status, occurred_at),
    ADD COLUMN error_code integer,
    ADD COLUMN error_title text,
    ADD COLUMN pricing_category text,
    ADD COLUMN billable boolean,
    ADD COLUMN cost_micros bigint,
    ADD COLUMN currency_code text,
    ADD COLUMN conversation_origin text,
    ADD CONSTRAINT message_status_events_cost_check
        CHECK (cost_micros IS NULL OR (cost_micros > 0 AND currency_code IS NOT NULL));

CREATE TABLE webhook_failures (
    salon_id text NOT NULL,
    webhook_failure_id uuid NOT NULL DEFAULT gen_random_uuid(),
    digest bytea NOT NULL,
    kind text NOT NULL,
    reason text NOT NULL,
    item text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT webhook_failures_pkey PRIMARY KEY (salon_id, webhook_failure_id),
    CONSTRAINT webhook_failures_digest_key UNIQUE (salon_id, digest),
    CONSTRAINT webhook_failures_kind_check CHECK (kind IN ('MESSAGE', 'STATUS', 'OTHER'))
);
COMMENT ON CONSTRAINT webhook_failures_digest_key ON webhook_failures IS 'The same item again is no second failure.';
CREATE INDEX idx_webhook_failures_salon_created ON webhook_failures (salon_id, created_at);
COMMENT ON INDEX idx_webhook_failures_salon_created IS 'Serves ListWebhookFailures.';

ALTER TABLE ai_messages ADD COLUMN booking_code text;
COMMENT ON COLUMN ai_messages.booking_code IS 'The booking that it led to; the booking service owns it, so no foreign key leads there.';

-- DELETE of what EraseCustomer takes away whole.
GRANT SELECT, INSERT, DELETE ON raw_messages, webhook_failures TO parlor_messaging;
GRANT DELETE ON message_status_events TO parlor_messaging;
