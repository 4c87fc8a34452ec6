"""The statements that read messages."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import (
    SNAPSHOT_XMIN,
    Loaded,
    encode_repeated,
    encoder,
    fetch_one,
    fetch_pages,
    fetch_raw,
    unnest,
    where,
)
from libs.server import Page, RpcError, given, names_given, responses
from parlor.messaging.v1.messaging_pb2 import ListMessagesResponse, Message, MessageStatusEvent
from services.messaging.identity_queries import current_names

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
    query = f"SELECT {MESSAGE} FROM messages WHERE salon_id = %s AND whatsapp_id = %s"
    return await fetch_one(conn, Message, query, (salon_id, whatsapp_id))


async def message_with_events(
    conn: AsyncConnection[Any], salon_id: str, message_id: str, whatsapp_id: str
) -> bytes | None:
    """Return a message with its raw item and its status events, oldest first. Both ids must match, if given.

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
    names, rows = await fetch_raw(conn, query, params)
    if not rows:
        return None
    first = names.index("raw_json") + 1
    columns = list(zip(*rows, strict=True))
    message = encoder(Message, *names[:first])([column[:1] for column in columns[:first]])[0]
    events = encoder(MessageStatusEvent, *names[first:])(columns[first:]) if rows[0][first] is not None else []
    return message + encode_repeated(events, Message.STATUS_EVENTS_FIELD_NUMBER)


class MessageFilters(NamedTuple):
    """Which messages of a salon to list; an empty filter is not applied."""

    salon_id: str
    conversation_id: str
    phone_number: str
    direction: str


async def list_messages(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[MessageFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListMessagesResponse for each page, newest first. All pages have the same filters.

    What is read by a name that the conversation no longer has is not stored: a write invalidates those it has.
    Source: report, "Message Indexes" 5 to 7; indexes idx_messages_salon_created, idx_messages_conversation_created,
    idx_messages_phone_salon; of a name also conversations_pkey, customer_identities_pkey.
    """
    lists = await fetch_pages(conn, Message, messages_statement(names_given(wanted[0])), list(map(given, wanted)))
    return responses(wanted, lists, ListMessagesResponse, "create_time", "message_id")


@cache
def messages_statement(names: tuple[str, ...]) -> str:
    """Return the statement that lists messages; `names` are those of its parameters."""
    types = {
        "salon_id": "text",
        "conversation_id": "uuid",
        "phone_number": "text",
        "direction": "text",
        "rows": "int",
        "after": "bigint",
        "id": "uuid",
    }
    conditions = {
        "salon_id": "salon_id = wanted.salon_id",
        "conversation_id": "conversation_id = current.conversation_id",
        "phone_number": "phone_number = current.phone_number",
        "direction": "direction = wanted.direction",
        "after": "(created_at, message_id) < (timestamptz 'epoch' + wanted.after * interval '1 us', wanted.id)",
    }
    current, xmin = current_names(names)
    return f"""
        SELECT {xmin} AS xmin, place, page.*
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}{current}
        LEFT JOIN LATERAL (
            SELECT {MESSAGE} FROM messages WHERE {where(conditions, names)}
            ORDER BY created_at DESC, messages.message_id DESC LIMIT wanted.rows
        ) AS page ON true"""
