"""The statements on messages, one function each."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import STAMP, Loaded, fetch_all, fetch_one, fetch_page, fetch_returned
from libs.rpc import Page
from parlor.messaging.v1.messaging_pb2 import Message

MESSAGE = (
    "message_id::text, salon_id, conversation_id::text, phone_number, 'MESSAGE_DIRECTION_' || direction AS direction,"
    " whatsapp_id, 'MESSAGE_TYPE_' || type AS type, content, 'MESSAGE_STATUS_' || status AS status,"
    " cost_micros, currency_code, created_at AS create_time"
)

# The order in which statuses win, so that any order of arrival ends the same.
RANK = "array_position(ARRAY['PENDING', 'SENT', 'FAILED', 'DELIVERED', 'READ'], {})"


class NewMessage(NamedTuple):
    """A message to record; the words are those of the columns."""

    phone_number: str
    direction: str
    whatsapp_id: str | None
    type: str
    content: str
    cost_micros: int
    currency_code: str | None
    created_at: datetime


class NewStatus(NamedTuple):
    """A status to record; `occurred_at` None is now."""

    whatsapp_id: str
    status: str
    occurred_at: datetime | None


async def insert_messages(
    conn: AsyncConnection[Any], salon_id: str, messages: Sequence[NewMessage], *, salon_known: bool
) -> list[Message]:
    """Insert the messages whose whatsapp_id the salon does not have yet, and create or revive their conversations.

    Return the inserted ones. Conversations are created only where `salon_known`; else their messages are left out.
    The caller holds the locks of the whatsapp_ids, so that no message and no status of them comes in between.
    Source: indexes whatsapp_id, salon_id_phone_number.
    """
    query = f"""
        WITH item AS (
            SELECT DISTINCT ON (coalesce('w' || whatsapp_id, place::text)) *
            FROM unnest(%(phone_number)s::text[], %(direction)s::text[], %(whatsapp_id)s::text[], %(type)s::text[],
                %(content)s::text[], %(cost_micros)s::bigint[], %(currency_code)s::text[],
                %(created_at)s::timestamptz[]
            ) WITH ORDINALITY AS given (phone_number, direction, whatsapp_id, type, content, cost_micros,
                currency_code, created_at, place)
            ORDER BY coalesce('w' || whatsapp_id, place::text), place
        ), fresh AS (
            SELECT * FROM item WHERE NOT EXISTS (
                SELECT FROM messages AS m WHERE m.salon_id = %(salon_id)s AND m.whatsapp_id = item.whatsapp_id
            )
        ), conversation AS (
            INSERT INTO conversations AS c (salon_id, phone_number, started_at, last_message_at)
            SELECT %(salon_id)s, phone_number, min(created_at), max(created_at) FROM fresh
            WHERE %(salon_known)s OR EXISTS (
                SELECT FROM conversations AS k
                WHERE k.salon_id = %(salon_id)s AND k.phone_number = fresh.phone_number
            )
            GROUP BY phone_number ORDER BY phone_number
            ON CONFLICT ON CONSTRAINT salon_id_phone_number DO UPDATE SET
                status = 'ACTIVE', revision = c.revision + 1,
                started_at = least(c.started_at, excluded.started_at),
                last_message_at = greatest(c.last_message_at, excluded.last_message_at)
            RETURNING c.conversation_id, c.phone_number
        )
        INSERT INTO messages (salon_id, conversation_id, phone_number, direction, whatsapp_id, type, content, status,
            cost_micros, currency_code, created_at)
        SELECT %(salon_id)s, conversation_id, phone_number, direction, whatsapp_id, type, content,
            CASE WHEN direction = 'INBOUND' THEN 'RECEIVED' ELSE coalesce((
                SELECT e.status FROM message_status_events AS e
                WHERE e.salon_id = %(salon_id)s AND e.whatsapp_id = fresh.whatsapp_id
                ORDER BY {RANK.format("e.status")} DESC LIMIT 1
            ), 'PENDING') END,
            cost_micros, currency_code, created_at
        FROM fresh JOIN conversation USING (phone_number)
        RETURNING {MESSAGE}"""
    columns = dict(zip(NewMessage._fields, map(list, zip(*messages, strict=True)), strict=True))
    return await fetch_all(conn, Message, query, {"salon_id": salon_id, "salon_known": salon_known, **columns})


async def insert_statuses(conn: AsyncConnection[Any], salon_id: str, statuses: Sequence[NewStatus]) -> int:
    """Keep statuses and move their messages forward; return how many were new.

    The caller holds the locks of the whatsapp_ids. A status whose message is not known waits for it.
    Source: indexes message_status_events_pkey, whatsapp_id.
    """
    query = f"""
        WITH event AS (
            INSERT INTO message_status_events (salon_id, whatsapp_id, status, occurred_at)
            SELECT %(salon_id)s, whatsapp_id, status, min(coalesce(occurred_at, now()))
            FROM unnest(%(whatsapp_id)s::text[], %(status)s::text[], %(occurred_at)s::timestamptz[])
                AS given (whatsapp_id, status, occurred_at)
            GROUP BY whatsapp_id, status ORDER BY whatsapp_id, status
            ON CONFLICT DO NOTHING
            RETURNING whatsapp_id, status
        ), furthest AS (
            SELECT DISTINCT ON (whatsapp_id) whatsapp_id, status
            FROM event ORDER BY whatsapp_id, {RANK.format("status")} DESC
        ), moved AS (
            UPDATE messages AS m SET status = furthest.status FROM furthest
            WHERE m.salon_id = %(salon_id)s AND m.whatsapp_id = furthest.whatsapp_id AND m.direction = 'OUTBOUND'
                AND {RANK.format("m.status")} < {RANK.format("furthest.status")}
        )
        SELECT count(*) FROM event"""
    columns = dict(zip(NewStatus._fields, map(list, zip(*statuses, strict=True)), strict=True))
    row = await (await conn.execute(query, {"salon_id": salon_id, **columns})).fetchone()
    return int(row[0]) if row else 0


async def message_by_whatsapp_id(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> Message | None:
    """Return the message of a whatsapp_id.

    Source: report, "Unique Constraints"; index whatsapp_id.
    """
    query = f"SELECT {MESSAGE} FROM messages WHERE salon_id = %s AND whatsapp_id = %s"
    return await fetch_one(conn, Message, query, (salon_id, whatsapp_id))


async def status_by_whatsapp_id(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> Message:
    """Return as much of a message as its statuses tell: its furthest status.

    Source: index message_status_events_pkey.
    """
    query = f"""
        SELECT salon_id, whatsapp_id, 'MESSAGE_STATUS_' || status AS status FROM message_status_events
        WHERE salon_id = %s AND whatsapp_id = %s ORDER BY {RANK.format("status")} DESC LIMIT 1"""
    return await fetch_returned(conn, Message, query, (salon_id, whatsapp_id))


async def list_messages(
    conn: AsyncConnection[Any], salon_id: str, conversation_id: str, phone_number: str, direction: str, page: Page
) -> Loaded[list[Message]]:
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
        "after": page.after_micros,
        "id": page.after_id,
        "limit": page.size + 1,
    }
    return await fetch_page(conn, Message, query, params)
