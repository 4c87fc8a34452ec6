"""Reactions, edits and revokes: the statements that record them and fold them into their message.

All of them are kept, so that a message ends in the same state in any order of arrival.
"""

from collections.abc import Iterable, Sequence

from libs.db import Statement, json_rows
from libs.messages import text_array
from services.messaging.conversation_upsert_queries import GIVEN, of_customers
from services.messaging.erased_ids import is_erased
from services.messaging.message_queries import MESSAGE
from services.messaging.message_write_queries import (
    ConversationKey,
    NewMessage,
    WrittenMessage,
    written_messages,
)


def insert_amendments(amendments: Sequence[NewMessage]) -> Statement[list[str]]:
    """Insert reactions, edits and revokes that are not recorded yet; return the whatsapp_id of each. Not erased ones.

    Their `reply_to_whatsapp_id` names the message. The caller holds the locks of both ids, and runs
    `fold_new_amendments` next.
    Source: indexes message_amendments_pkey, whatsapp_id.
    """
    query = f"""
        WITH {GIVEN}
        INSERT INTO message_amendments (salon_id, whatsapp_id, target_whatsapp_id, kind, direction, phone_number,
            user_id, content, media_id, created_at, item, early_since)
        SELECT salon_id, whatsapp_id, reply_to_whatsapp_id, type, direction, phone_number, user_id, content, media_id,
            created_at, item::json, CASE WHEN NOT EXISTS (
                SELECT FROM messages AS m
                WHERE m.salon_id = given.salon_id AND m.whatsapp_id = given.reply_to_whatsapp_id
            ) THEN now() END
        FROM given WHERE NOT {is_erased("given.salon_id", "given.reply_to_whatsapp_id")}
        ORDER BY salon_id, whatsapp_id
        ON CONFLICT ON CONSTRAINT message_amendments_pkey DO NOTHING
        RETURNING whatsapp_id"""
    return Statement(query, {"messages": json_rows(amendments)}, lambda _, rows: [name.decode() for (name,) in rows])


def touch_conversations(reactions: Sequence[NewMessage]) -> Statement[list[ConversationKey]]:
    """Open the service windows of the customers whose reactions this transaction has inserted; return conversations.

    A customer who has not written yet gets a conversation without messages. The feed gets a change for each
    conversation, since the message of a reaction may not be recorded.
    Source: index message_amendments_pkey, and those of `of_customers`.
    """
    return Statement(
        _TOUCH_CONVERSATIONS,
        {"messages": json_rows(reactions)},
        lambda _, rows: [ConversationKey(identifier.decode(), (phone or b"").decode()) for identifier, phone in rows],
    )


_OF_THIS_TRANSACTION = "a.xmin = pg_current_xact_id()::xid"
_IS_NEW = f"""EXISTS (
            SELECT FROM message_amendments AS a
            WHERE a.salon_id = given.salon_id AND a.whatsapp_id = given.whatsapp_id AND {_OF_THIS_TRANSACTION}
        )"""
_TOUCH_CONVERSATIONS = f"""
    WITH {of_customers(_IS_NEW, has_messages=False)}, change AS (
        INSERT INTO message_changes (salon_id, type, conversation_id)
        SELECT DISTINCT salon_id, 'CONVERSATION_UPDATED', conversation_id FROM placed
    )
    SELECT DISTINCT conversation_id::text, current_number FROM placed"""


def fold_amendments(salon_id: str, whatsapp_ids: Iterable[str]) -> Statement[list[WrittenMessage]]:
    """Fold all reactions, edits and revokes of messages into them; return those of the messages that exist.

    An edit or a revoke counts if it comes from the side that sent the message. Each person has one reaction, or each
    side, except in a group. The text of the latest edit counts; a revoked message has no content.
    Source: indexes whatsapp_id, messages_pkey, idx_message_amendments_target, conversations_pkey.
    """
    params = {"salon_id": salon_id, "whatsapp_ids": text_array(sorted(set(whatsapp_ids)))}
    return Statement(_FOLD_AMENDMENTS, params, written_messages)


def fold_new_amendments(amendments: Sequence[NewMessage]) -> Statement[list[WrittenMessage]]:
    """Do as `fold_amendments` for the messages of those amendments that this transaction has inserted.

    The others are repeats, which write nothing. All are of one salon.
    Source: as `fold_amendments`, and index message_amendments_pkey.
    """
    names = text_array(amendment.whatsapp_id or "" for amendment in amendments)
    params = {"salon_id": amendments[0].salon_id, "whatsapp_ids": names}
    return Statement(_FOLD_NEW_AMENDMENTS, params, written_messages)


def _time(column: str) -> str:
    """Return a time as the JSON of a Timestamp, NULL for NULL; WhatsApp's times are whole seconds."""
    seconds = f"jsonb_build_object('seconds', floor(extract(epoch FROM {column}))::bigint)"
    return f"CASE WHEN {column} IS NOT NULL THEN {seconds} END"


_LATEST_EDIT = "(array_agg({0} ORDER BY created_at DESC, a.whatsapp_id DESC) FILTER (WHERE {0} IS NOT NULL AND {1}))[1]"
_OWN = "a.kind = '{}' AND a.direction = of_direction".format
_FOLDED = f"""
    SELECT {_LATEST_EDIT.format("a.content", _OWN("EDIT"))} AS new_content,
        {_LATEST_EDIT.format("a.media_id", _OWN("EDIT"))} AS new_media_id,
        max(a.created_at) FILTER (WHERE {_OWN("EDIT")}) AS edited_at,
        min(a.created_at) FILTER (WHERE {_OWN("REVOKE")}) AS revoked_at
    FROM message_amendments AS a
    WHERE a.salon_id = of_salon AND a.target_whatsapp_id = of_whatsapp_id"""
_REACTIONS = f"""
    SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
        'emoji', content, 'direction', 'MESSAGE_DIRECTION_' || direction, 'create_time', {_time("created_at")},
        'phone_number', CASE WHEN in_group THEN phone_number END, 'user_id', CASE WHEN in_group THEN user_id END
    )) ORDER BY created_at, whatsapp_id) AS reactions
    FROM (
        SELECT DISTINCT ON (a.direction, person) a.*
        FROM message_amendments AS a,
            LATERAL (SELECT CASE WHEN in_group THEN coalesce(a.phone_number, a.user_id) END AS person) AS of_person
        WHERE a.salon_id = of_salon AND a.target_whatsapp_id = of_whatsapp_id AND a.kind = 'REACTION'
        ORDER BY a.direction, person, a.created_at DESC, a.whatsapp_id DESC
    ) AS latest WHERE content <> ''"""
_CONTENT_FIELDS = "{interactive_reply,location,order,referral,contacts,referred_product}"


def _fold(whatsapp_ids: str) -> str:
    """Return the statement that folds the amendments of the messages whose whatsapp_id is in an array."""
    return f"""
        UPDATE messages AS m SET
            content = CASE WHEN revoked_at IS NULL THEN coalesce(new_content, m.content) ELSE '' END,
            media_id = CASE WHEN revoked_at IS NULL THEN coalesce(new_media_id, m.media_id) END,
            details = nullif(
                coalesce(m.details, '{{}}') - '{{reactions,edited_time,revoked_time}}'::text[]
                    - CASE WHEN revoked_at IS NULL THEN '{{}}' ELSE '{_CONTENT_FIELDS}' END::text[]
                    || jsonb_strip_nulls(jsonb_build_object('reactions', reactions, 'edited_time', {_time("edited_at")},
                        'revoked_time', {_time("revoked_at")})),
                '{{}}'
            )
        FROM (
            SELECT t.salon_id AS of_salon, t.message_id AS of_message, t.whatsapp_id AS of_whatsapp_id,
                t.direction AS of_direction, (
                SELECT kind = 'GROUP' FROM conversations AS c
                WHERE c.salon_id = t.salon_id AND c.conversation_id = t.conversation_id
            ) AS in_group
            FROM messages AS t
            WHERE t.salon_id = %(salon_id)s AND t.whatsapp_id = ANY ({whatsapp_ids})
            ORDER BY t.message_id FOR NO KEY UPDATE OF t
        ) AS named, LATERAL ({_FOLDED}) AS folded, LATERAL ({_REACTIONS}) AS reacted
        WHERE m.salon_id = of_salon AND m.message_id = of_message
        RETURNING {MESSAGE}"""


_FOLD_AMENDMENTS = _fold("%(whatsapp_ids)s::text[]")
_FOLD_NEW_AMENDMENTS = _fold(f"""ARRAY (
                SELECT a.target_whatsapp_id FROM message_amendments AS a
                WHERE a.salon_id = %(salon_id)s AND a.whatsapp_id = ANY (%(whatsapp_ids)s::text[])
                    AND {_OF_THIS_TRANSACTION}
            )""")
