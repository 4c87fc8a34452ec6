"""The statements that read messages, one function each."""

from typing import Any

from psycopg import AsyncConnection

from libs.db import STAMP, Loaded, elements, encoder, fetch_one, fetch_page, fetch_undecoded
from libs.rpc import Page
from parlor.messaging.v1.messaging_pb2 import Message, MessageStatusEvent

MESSAGE = (
    "message_id::text, salon_id, conversation_id::text, phone_number, 'MESSAGE_DIRECTION_' || direction AS direction,"
    " whatsapp_id, 'MESSAGE_TYPE_' || type AS type, content, 'MESSAGE_STATUS_' || status AS status,"
    " cost_micros, currency_code, created_at AS create_time, media_id, reply_to_whatsapp_id, error_code, error_title,"
    " pricing_category, billable, conversation_origin"
)
_EVENT = (
    "'MESSAGE_STATUS_' || status AS status, occurred_at AS event_time, error_code, error_title, pricing_category,"
    " billable, cost_micros, currency_code, conversation_origin"
)


async def message_by_whatsapp_id(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> Message | None:
    """Return the message of a whatsapp_id.

    Source: report, "Unique Constraints"; index whatsapp_id.
    """
    query = f"SELECT {MESSAGE} FROM messages WHERE salon_id = %s AND whatsapp_id = %s"
    return await fetch_one(conn, Message, query, (salon_id, whatsapp_id))


async def whole_message(conn: AsyncConnection[Any], salon_id: str, message_id: str, whatsapp_id: str) -> bytes | None:
    """Return a message with its raw item and its status events, oldest first; of both ids, where both are given.

    Source: indexes messages_pkey, whatsapp_id, raw_messages_pkey, message_status_events_pkey.
    """
    conditions = ((" AND message_id = %(message_id)s", message_id), (" AND whatsapp_id = %(whatsapp_id)s", whatsapp_id))
    where = "".join(condition for condition, value in conditions if value)
    query = f"""
        SELECT message.*, raw.item::text AS raw_json, event.*
        FROM (SELECT {MESSAGE} FROM messages WHERE salon_id = %(salon_id)s{where}) AS message
        LEFT JOIN raw_messages AS raw ON raw.salon_id = %(salon_id)s AND raw.message_id = message.message_id::uuid
        LEFT JOIN LATERAL (
            SELECT {_EVENT} FROM message_status_events AS e
            WHERE e.salon_id = %(salon_id)s AND e.whatsapp_id = message.whatsapp_id
        ) AS event ON true
        ORDER BY event_time, event.status"""
    params = {"salon_id": salon_id, "message_id": message_id, "whatsapp_id": whatsapp_id}
    names, rows = await fetch_undecoded(conn, query, params)
    if not rows:
        return None
    first = names.index("raw_json") + 1
    message, event = encoder(Message, *names[:first]), encoder(MessageStatusEvent, *names[first:])
    events = [event(row[first:]) for row in rows if row[first] is not None]
    return message(rows[0][:first]) + elements(events, Message.STATUS_EVENTS_FIELD_NUMBER)


async def list_messages(
    conn: AsyncConnection[Any], salon_id: str, conversation_id: str, phone_number: str, direction: str, page: Page
) -> Loaded[list[bytes]]:
    """Return up to one message more than the page has, newest first.

    Source: report, "Message Indexes" 5 to 7; indexes idx_messages_salon_created, idx_messages_conversation_created,
    idx_messages_phone_salon.
    """
    conditions = (
        (" AND conversation_id = %(conversation_id)s", conversation_id),
        (" AND phone_number = %(phone_number)s", phone_number),
        (" AND direction = %(direction)s", direction),
        (
            " AND (created_at, message_id) < (timestamptz 'epoch' + %(after)s * interval '1 us', %(id)s::uuid)",
            page.after_id,
        ),
    )
    where = "".join(condition for condition, value in conditions if value)
    query = f"""
        SELECT stamp, page.*
        FROM {STAMP} LEFT JOIN LATERAL (
            SELECT {MESSAGE} FROM messages WHERE salon_id = %(salon_id)s{where}
            ORDER BY created_at DESC, messages.message_id DESC LIMIT %(limit)s
        ) AS page ON true"""
    params = {
        "salon_id": salon_id,
        "conversation_id": conversation_id,
        "phone_number": phone_number,
        "direction": direction,
    }
    return await fetch_page(conn, Message, query, params | page.params)
