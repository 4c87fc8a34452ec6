-- Owned by the messaging service. The step that makes the words of older messages anew (migration 0018) updates messages,
-- but changes nothing that readers of the feed see.
CREATE OR REPLACE TRIGGER message_changes_updated AFTER UPDATE ON messages REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT WHEN (current_setting('parlor.makes_words', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION write_message_changes('MESSAGE_UPDATED');
