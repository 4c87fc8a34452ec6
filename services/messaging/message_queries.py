"""The statements that read messages."""

from typing import Any

from psycopg import AsyncConnection

from libs.messages import encode_repeated, encoder, fetch_one, fetch_raw
from libs.server import errors
from parlor.messaging.v1.messaging_pb2 import Message, MessageStatusEvent

MESSAGE = (
    "message_id::text, salon_id, conversation_id::text, phone_number, 'MESSAGE_DIRECTION_' || direction AS direction,"
    " whatsapp_id, 'MESSAGE_TYPE_' || type AS type, content, 'MESSAGE_STATUS_' || status AS status,"
    " cost_micros, currency_code, created_at AS create_time, media_id, reply_to_whatsapp_id, error_code, error_title,"
    " pricing_category, billable, conversation_origin, details AS fields"
)
_EVENT = (
    "'MESSAGE_STATUS_' || status AS status, occurred_at AS event_time, error_code, error_title, pricing_category,"
    " billable, cost_micros, currency_code, conversation_origin, details AS fields"
)


async def message_by_whatsapp_id(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> Message | None:
    """Return the message of a whatsapp_id.

    Source: report, "Unique Constraints"; index whatsapp_id.
    """
    query = f"SELECT {MESSAGE} FROM messages WHERE salon_id = %s AND whatsapp_id = %s LIMIT 1"
    return await fetch_one(conn, Message, query, (salon_id, whatsapp_id))


async def refuse_archived(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> None:
    """Raise MESSAGE_ARCHIVED if a whatsapp_id is that of a message in a file of `parlor archive`.

    The caller has not found it in the table. Source: index message_names_pkey.
    """
    query = b"SELECT FROM message_names WHERE salon_id = %s AND name = message_name(%s)"
    if (await conn.execute(query, (salon_id, whatsapp_id))).rowcount:
        text = "the message with this whatsapp_id was archived: `parlor restore-archive` brings it back"
        raise errors.failed_precondition("MESSAGE_ARCHIVED", f"message/{salon_id}", text)


async def message_with_events(
    conn: AsyncConnection[Any], salon_id: str, message_id: str, whatsapp_id: str
) -> bytes | None:
    """Return a message with its raw item and its status events, oldest first. Both ids must match, if given.

    Source: indexes messages_pkey, whatsapp_id, raw_messages_pkey, message_status_events_pkey.
    """
    # LIMIT: of partitions, those after the message need not be read.
    conditions = ((" AND message_id = %(message_id)s", message_id), (" AND whatsapp_id = %(whatsapp_id)s", whatsapp_id))
    where = "".join(condition for condition, value in conditions if value)
    query = f"""
        SELECT message.*, raw.item::text AS raw_json, event.*
        FROM (SELECT {MESSAGE} FROM messages WHERE salon_id = %(salon_id)s{where} LIMIT 1) AS message
        LEFT JOIN raw_messages AS raw ON raw.salon_id = %(salon_id)s AND raw.message_id = message.message_id::uuid
        LEFT JOIN LATERAL (
            SELECT {_EVENT} FROM message_status_events AS e
            WHERE e.salon_id = %(salon_id)s AND e.whatsapp_id = message.whatsapp_id
        ) AS event ON true
        ORDER BY event_time, event.status"""
    params = {"salon_id": salon_id, "message_id": message_id, "whatsapp_id": whatsapp_id}
    names, rows = await fetch_raw(conn, query, params)
    if not rows:
        return None
    first = names.index("raw_json") + 1
    columns = list(zip(*rows, strict=True))
    message = encoder(Message, *names[:first])([column[:1] for column in columns[:first]])[0]
    events = encoder(MessageStatusEvent, *names[first:])(columns[first:]) if rows[0][first] is not None else []
    return message + encode_repeated(events, Message.STATUS_EVENTS_FIELD_NUMBER)
