-- Owned by the messaging service. In scripts without spaces each character is a word, too. A search for one character was
-- one for a prefix: it read all texts with any pair that begins with the character, of all salons, for each period.

CREATE FUNCTION spaceless_characters(content text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (
        SELECT string_agg(DISTINCT character, ' ') FROM unnest(string_to_array(content, NULL)) AS of (character)
        WHERE is_spaceless(character)
    );
COMMENT ON FUNCTION spaceless_characters IS 'The characters of a text in scripts without spaces, with spaces between them.';

CREATE OR REPLACE FUNCTION message_vector(language text, content text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN is_spaceless(content) THEN
            words_vector(language, paired(plain_words(content), ' '))
                || strip(to_tsvector('messages_simple', coalesce(spaceless_characters(plain_words(content)), '')))
        ELSE words_vector(language, plain_words(content))
    END;

-- The pairs of a word are joined by _, which makes them a phrase.
CREATE OR REPLACE FUNCTION message_query(language text, query text) RETURNS tsquery
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN words_query(language,
        CASE WHEN is_spaceless(query) THEN paired(plain_words(query), '_') ELSE plain_words(query) END);

DROP FUNCTION run_ends;

-- The background step of migration 0018 makes the words of older messages anew. The index of names may keep what it has:
-- a query for a name looks for prefixes, so the pairs suffice.
DELETE FROM search_backfill;
INSERT INTO search_backfill (salon_id, message_id)
SELECT '', '00000000-0000-0000-0000-000000000000' WHERE EXISTS (SELECT FROM messages);
