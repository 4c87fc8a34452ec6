-- transactional: false
-- Owned by the messaging service: the inbox, and search in every language.
--
-- Indexes are built concurrently: messages are written meanwhile. So this file runs outside of a transaction, and may be
-- run again after a failure. A build that failed leaves an invalid index, which is dropped first.

-- Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han. A word of them is found by its pairs of
-- characters.
CREATE OR REPLACE FUNCTION is_spaceless(content text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN content ~ '[\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3005-\u3007\u3040-\u30FF\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\uFF66-\uFF9F\U00020000-\U0003FFFF]';
COMMENT ON FUNCTION is_spaceless IS 'Whether a text has characters of a script without spaces.';

CREATE OR REPLACE FUNCTION plain_words(content text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN regexp_replace(CASE WHEN content IS NFKC NORMALIZED THEN content ELSE normalize(content, NFKC) END,
        '[<>\u00A1\u00AB\u00B7\u00BB\u00BF\u05BE\u060C\u061B\u061F\u06D4\u0964\u0965\u2010-\u2027\u2030-\u205E\u3000-\u3004\u3008-\u303F\u30FB]',
        ' ', 'g');
COMMENT ON FUNCTION plain_words IS
    'A text in one form of Unicode. A text is no HTML: < and > are spaces, and so is punctuation beyond ASCII, which Postgres takes for letters in some locales.';

CREATE OR REPLACE FUNCTION paired(content text, joint text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (
        SELECT string_agg(
            CASE
                WHEN NOT spaceless THEN character
                WHEN coalesce(follows, false) THEN
                    CASE WHEN coalesce(precedes, false) THEN joint ELSE ' ' END || character || next
                WHEN coalesce(precedes, false) THEN ' '
                ELSE ' ' || character || ' '
            END, '' ORDER BY place)
        FROM (
            SELECT *, lead(character) OVER run AS next, lead(spaceless) OVER run AS follows,
                lag(spaceless) OVER run AS precedes
            FROM (
                SELECT character, place, is_spaceless(character) AS spaceless
                FROM unnest(string_to_array(content, NULL)) WITH ORDINALITY AS of (character, place)
            ) AS characters
            WINDOW run AS (ORDER BY place)
        ) AS neighbors
    );
COMMENT ON FUNCTION paired IS
    'A text whose runs of characters without spaces are replaced by their pairs: "ABC" by "AB", the joint, and "BC".';

CREATE OR REPLACE FUNCTION run_ends(content text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (
        SELECT string_agg(character, ' ' ORDER BY place)
        FROM (
            SELECT character, place, is_spaceless(character) AS spaceless,
                lead(is_spaceless(character)) OVER (ORDER BY place) AS follows
            FROM unnest(string_to_array(content, NULL)) WITH ORDINALITY AS of (character, place)
        ) AS characters
        WHERE spaceless AND NOT coalesce(follows, false)
    );
COMMENT ON FUNCTION run_ends IS
    'The last character of each run without spaces: with the pairs, every single character begins a word.';

-- A message's words now include the stop words of its language. A query leaves them out, unless it has no other word.
CREATE OR REPLACE FUNCTION query_or_all(query tsquery, with_stop_words tsquery) RETURNS tsquery
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN querytree(query) IN ('', 'T') THEN with_stop_words ELSE query END;

DO $$
DECLARE
    grammars constant jsonb := '{
        "ar": "arabic", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
        "fi": "finnish", "fr": "french", "hi": "hindi", "hu": "hungarian", "id": "indonesian", "it": "italian",
        "nl": "dutch", "no": "norwegian", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sv": "swedish",
        "tr": "turkish"}';
    code text;
    grammar text;
    vectors text := '';
    queries text := '';
    snippets text := '';
BEGIN
    FOR code, grammar IN SELECT key, value FROM jsonb_each_text(grammars) ORDER BY key LOOP
        IF NOT EXISTS (SELECT FROM pg_ts_dict WHERE dictname = 'messages_' || grammar) THEN
            EXECUTE format('CREATE TEXT SEARCH DICTIONARY messages_%s (TEMPLATE = snowball, LANGUAGE = %s)', grammar, grammar);
        END IF;
        IF NOT EXISTS (SELECT FROM pg_ts_config WHERE cfgname = 'messages_all_' || code) THEN
            EXECUTE format('CREATE TEXT SEARCH CONFIGURATION messages_all_%s (COPY = messages_simple)', code);
            EXECUTE format('ALTER TEXT SEARCH CONFIGURATION messages_all_%s
                ALTER MAPPING FOR asciihword, asciiword, hword, hword_asciipart, hword_part, word
                WITH unaccent, messages_%s', code, grammar);
        END IF;
        vectors := vectors || format('WHEN %L THEN to_tsvector(''messages_all_%s'', words) ', code, code);
        snippets := snippets || format('WHEN %L THEN ts_headline(''messages_all_%s'', escaped, query) ', code, code);
        queries := queries || format('WHEN %L THEN query_or_all(websearch_to_tsquery(''messages_%s'', words),
            websearch_to_tsquery(''messages_all_%s'', words)) ', code, code, code);
    END LOOP;
    EXECUTE 'CREATE OR REPLACE FUNCTION words_vector(language text, words text) RETURNS tsvector
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN CASE language ' || vectors || 'ELSE to_tsvector(''messages_simple'', words) END';
    EXECUTE 'CREATE OR REPLACE FUNCTION words_query(language text, words text) RETURNS tsquery
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN CASE language ' || queries || 'ELSE websearch_to_tsquery(''messages_simple'', words) END';
    EXECUTE 'CREATE OR REPLACE FUNCTION message_snippet(language text, escaped text, query tsquery) RETURNS text
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN CASE language ' || snippets || 'ELSE ts_headline(''messages_simple'', escaped, query) END';
END $$;

CREATE OR REPLACE FUNCTION message_vector(language text, content text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN is_spaceless(content) THEN
            words_vector(language, paired(plain_words(content), ' '))
                || to_tsvector('messages_simple', coalesce(run_ends(plain_words(content)), ''))
        ELSE words_vector(language, plain_words(content))
    END;

-- The pairs of a word are joined by _, which makes them a phrase. One character begins a pair, or is the end of a run.
CREATE OR REPLACE FUNCTION message_query(language text, query text) RETURNS tsquery
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN is_spaceless(query) THEN regexp_replace(
            words_query(language, paired(plain_words(query), '_'))::text,
            '''([\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3005-\u3007\u3040-\u30FF\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U0003FFFF])''',
            '''\1'':*', 'g')::tsquery
        ELSE words_query(language, plain_words(query))
    END;
COMMENT ON FUNCTION message_query IS
    'What a web search looks for, without the stop words of the language; with them if it would be nothing.';

-- Searches read a salon's messages by periods of 2 days, newest first, until they have found enough.
CREATE OR REPLACE FUNCTION search_period(created_at timestamptz) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN floor(extract(epoch FROM created_at - timestamptz '1970-01-01 00:00:00+00') / 172800)::integer;
CREATE OR REPLACE FUNCTION salon_period(salon_id text, period integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN salon_id || ' ' || period::text;

DROP INDEX CONCURRENTLY IF EXISTS idx_messages_salon_period_search;
CREATE INDEX CONCURRENTLY idx_messages_salon_period_search ON messages
    USING gin (salon_period(salon_id, search_period(created_at)), search)
    WITH (gin_pending_list_limit = 64);
COMMENT ON INDEX idx_messages_salon_period_search IS
    'Serves SearchMessages. Its list of pending rows, in kB, is short: each period reads it again.';

-- The words of a salon's messages, to find those that are similar to a word that no message has.
CREATE TABLE IF NOT EXISTS message_words (
    salon_id text NOT NULL,
    word text NOT NULL,
    CONSTRAINT message_words_pkey PRIMARY KEY (salon_id, word)
);
COMMENT ON TABLE message_words IS
    'Words of the messages of a salon, as in messages.search. A word of an erased text is removed, until it is used again.';
CREATE INDEX IF NOT EXISTS message_words_similar ON message_words USING gin (salon_id, word gin_trgm_ops);
COMMENT ON INDEX message_words_similar IS 'Serves SearchMessages where no word is found: similar ones are.';
GRANT SELECT, INSERT, DELETE ON message_words TO parlor_messaging;

CREATE OR REPLACE FUNCTION is_searchable(word text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN length(word) BETWEEN 2 AND 40 AND word !~ '[0-9]';
COMMENT ON FUNCTION is_searchable IS 'Whether a word may be similar to one that is looked for: no numbers.';

CREATE OR REPLACE FUNCTION add_message_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO message_words (salon_id, word)
    SELECT DISTINCT salon_id, lexeme FROM inserted CROSS JOIN LATERAL unnest(search) AS words
    WHERE is_searchable(lexeme) ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER messages_words AFTER INSERT ON messages
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION add_message_words();

-- An edited or erased text must not leave its words behind.
CREATE OR REPLACE FUNCTION change_message_words() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM message_words WHERE salon_id = OLD.salon_id AND word = ANY (tsvector_to_array(OLD.search))
        AND word <> ALL (tsvector_to_array(NEW.search));
    INSERT INTO message_words (salon_id, word)
    SELECT NEW.salon_id, lexeme FROM unnest(NEW.search)
    WHERE is_searchable(lexeme) ORDER BY lexeme
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER messages_words_changed AFTER UPDATE OF content, language ON messages
    FOR EACH ROW WHEN (OLD.content <> NEW.content OR OLD.language <> NEW.language) EXECUTE FUNCTION change_message_words();

CREATE OR REPLACE FUNCTION quoted_word(word text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN '''' || replace(replace(word, chr(92), repeat(chr(92), 2)), '''', '''''') || '''';
COMMENT ON FUNCTION quoted_word IS 'A word as it stands in a tsquery.';

CREATE OR REPLACE FUNCTION similar_query(salon_id text, query tsquery) RETURNS tsquery LANGUAGE sql STABLE
    SET pg_trgm.similarity_threshold = 0.25
    RETURN (
        SELECT string_agg(quoted_word(nearest.word), ' | ')::tsquery
        FROM (
            SELECT lexeme AS word FROM unnest(to_tsvector('simple', nullif(querytree(query), 'T')))
            ORDER BY length(lexeme) DESC, lexeme LIMIT 8
        ) AS asked CROSS JOIN LATERAL (
            SELECT coalesce(
                (SELECT w.word FROM message_words AS w
                 WHERE w.salon_id = similar_query.salon_id AND w.word = asked.word),
                (SELECT w.word FROM message_words AS w
                 WHERE w.salon_id = similar_query.salon_id AND w.word % asked.word
                 ORDER BY similarity(w.word, asked.word) DESC, w.word LIMIT 1)
            ) AS word
        ) AS nearest
    );
COMMENT ON FUNCTION similar_query IS
    'Finds, for each of the 8 longest words that a query wants, the most similar word of the salon''s messages; NULL if there is none.';

DROP INDEX CONCURRENTLY IF EXISTS idx_messages_salon_words;
DROP INDEX CONCURRENTLY IF EXISTS idx_messages_salon_search;

-- Messages of before have no stop words and no pairs. A background step of the messaging service adds them, from here on.
CREATE TABLE IF NOT EXISTS search_backfill (
    salon_id text NOT NULL,
    message_id uuid NOT NULL,
    CONSTRAINT search_backfill_pkey PRIMARY KEY (salon_id, message_id)
);
COMMENT ON TABLE search_backfill IS
    'The last message, in the order of messages_pkey, whose words are as the present functions make them. Empty: all are.';
INSERT INTO search_backfill (salon_id, message_id)
SELECT '', '00000000-0000-0000-0000-000000000000' WHERE EXISTS (SELECT FROM messages) ON CONFLICT DO NOTHING;
GRANT SELECT, UPDATE, DELETE ON search_backfill TO parlor_messaging;

-- The inbox

CREATE OR REPLACE FUNCTION name_vector(name text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN message_vector('', name);
CREATE OR REPLACE FUNCTION name_query(query text) RETURNS tsquery LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (
        SELECT string_agg(quoted_word(lexeme) || ':*', ' & ')::tsquery
        FROM unnest(to_tsvector('messages_simple', paired(plain_words(query), ' ')))
    );
COMMENT ON FUNCTION name_query IS 'Finds names with words that begin like all words of a text; NULL if it has none.';

DROP INDEX CONCURRENTLY IF EXISTS idx_conversations_salon_name;
CREATE INDEX CONCURRENTLY idx_conversations_salon_name ON conversations USING gin (salon_id, name_vector(customer_name))
    WHERE customer_name <> '';
COMMENT ON INDEX idx_conversations_salon_name IS 'Serves ListConversations by the query, as a name.';

DROP INDEX CONCURRENTLY IF EXISTS idx_conversations_salon_number;
CREATE INDEX CONCURRENTLY idx_conversations_salon_number ON conversations (salon_id, phone_number COLLATE "C");
COMMENT ON INDEX idx_conversations_salon_number IS
    'Serves ListConversations by the query, as the beginning of a phone number.';

DROP INDEX CONCURRENTLY IF EXISTS idx_conversations_salon_unassigned_last;
CREATE INDEX CONCURRENTLY idx_conversations_salon_unassigned_last ON conversations (salon_id, last_message_at)
    WHERE assignee = '';
COMMENT ON INDEX idx_conversations_salon_unassigned_last IS 'Serves ListConversations of those assigned to nobody.';

DROP INDEX CONCURRENTLY IF EXISTS idx_conversations_salon_window;
CREATE INDEX CONCURRENTLY idx_conversations_salon_window ON conversations (salon_id, service_window_expires_at);
COMMENT ON INDEX idx_conversations_salon_window IS
    'Serves ListConversations by window_open, and tells how long such a list is true.';
