"""Items that add to a message which is recorded already: events of a call, media of the history."""

from collections.abc import Sequence

from libs.db import Statement, json_rows
from services.messaging.conversation_upsert_queries import EFFECTS, ROWS, updated_effects
from services.messaging.message_queries import MESSAGE
from services.messaging.message_write_queries import NewMessage, WrittenMessage, written_messages


def fold_calls(events: Sequence[NewMessage]) -> Statement[list[WrittenMessage]]:
    """Fold events of calls into the messages of the calls; return the messages that changed.

    `insert_messages` has run before, so each call has a message: that of its first event. It gets the time of the
    earliest event, and the outcome once one names it; the conversation gets the effects of each event.
    Source: indexes whatsapp_id, messages_pkey, conversations_pkey.
    """
    return Statement(_FOLD_CALLS, {"messages": json_rows(events)}, written_messages)


_FOLD_CALLS = f"""
    WITH called AS (
        SELECT m.salon_id, m.message_id, m.conversation_id, m.whatsapp_id, m.created_at AS known_at,
            m.details->'call'->>'status' = 'CALL_STATUS_STARTED' AS is_open
        FROM messages AS m WHERE m.type = 'CALL' AND (m.salon_id, m.whatsapp_id) IN (
            SELECT salon_id, whatsapp_id FROM {ROWS}
        ) ORDER BY m.message_id FOR NO KEY UPDATE
    ), event AS (
        SELECT salon_id, called.message_id, conversation_id, known_at, is_open, created_at, unread, reopens,
            opens_window, given.details->'call' AS call,
            given.details->'call'->>'status' <> 'CALL_STATUS_STARTED' AS is_end
        FROM {ROWS} JOIN called USING (salon_id, whatsapp_id)
    ), changed AS (
        SELECT salon_id, message_id, conversation_id, min(created_at) AS first_at, max(created_at) AS last_at,
            (array_agg(call ORDER BY created_at) FILTER (WHERE is_end AND is_open))[1] AS outcome,
            bool_or(is_end AND is_open AND unread)::int AS unread_count, {EFFECTS}
        FROM event WHERE created_at < known_at OR (is_end AND is_open)
        GROUP BY salon_id, message_id, conversation_id
    ), conversation AS (
        UPDATE conversations AS c SET
            {updated_effects("called")},
            started_at = least(c.started_at, first_at), last_message_at = greatest(c.last_message_at, last_at)
        FROM (
            SELECT salon_id, conversation_id, min(first_at) AS first_at, max(last_at) AS last_at,
                sum(unread_count)::int AS unread_count, max(reopened_at) AS reopened_at,
                max(service_window_expires_at) AS service_window_expires_at
            FROM changed GROUP BY salon_id, conversation_id
        ) AS called
        WHERE c.salon_id = called.salon_id AND c.conversation_id = called.conversation_id
    )
    UPDATE messages AS m SET created_at = least(m.created_at, first_at),
        details = CASE WHEN outcome IS NULL THEN m.details ELSE m.details || jsonb_build_object('call', outcome) END
    FROM (SELECT salon_id AS of_salon, message_id AS of_message, first_at, outcome FROM changed) AS changed
    WHERE m.salon_id = of_salon AND m.message_id = of_message
    RETURNING {MESSAGE}"""


def fill_media(messages: Sequence[NewMessage]) -> Statement[list[WrittenMessage]]:
    """Add the media of the history to its messages that came without them; return the messages that changed.

    Their raw items are deleted: `insert_media_items` runs next.
    Source: indexes whatsapp_id, messages_pkey, raw_messages_pkey.
    """
    return Statement(_FILL_MEDIA, {"messages": json_rows(messages)}, written_messages)


_FILL_MEDIA = f"""
    WITH named AS (
        SELECT sent.salon_id AS of_salon, sent.message_id AS of_message, given.type AS of_type,
            given.media_id AS of_media, given.content AS caption
        FROM {ROWS} JOIN messages AS sent USING (salon_id, whatsapp_id)
        WHERE sent.media_id IS NULL AND given.media_id IS NOT NULL AND NOT sent.details ? 'revoked_time'
            AND sent.details->>'origin' = 'MESSAGE_ORIGIN_HISTORY'
        ORDER BY sent.message_id FOR NO KEY UPDATE OF sent
    ), raw AS (
        DELETE FROM raw_messages USING named WHERE salon_id = of_salon AND message_id = of_message
    )
    UPDATE messages AS m SET type = of_type, media_id = of_media,
        content = CASE WHEN m.content = '' THEN caption ELSE m.content END
    FROM named WHERE m.salon_id = of_salon AND m.message_id = of_message
    RETURNING {MESSAGE}"""


def insert_media_items(messages: Sequence[NewMessage]) -> Statement[None]:
    """Insert the raw items of media of the history whose messages have none.

    Source: indexes whatsapp_id, raw_messages_pkey.
    """
    query = f"""
        INSERT INTO raw_messages (salon_id, message_id, item)
        SELECT sent.salon_id, sent.message_id, given.item::json
        FROM {ROWS} JOIN messages AS sent USING (salon_id, whatsapp_id)
        WHERE sent.media_id = given.media_id AND sent.details->>'origin' = 'MESSAGE_ORIGIN_HISTORY'
        ON CONFLICT DO NOTHING"""
    return Statement(query, {"messages": json_rows(messages)}, lambda *_: None)
