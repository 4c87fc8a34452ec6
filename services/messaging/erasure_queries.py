"""The statements that take a customer out of the rows, one function each."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from services.messaging.conversation_queries import Named


class Customer(NamedTuple):
    """All that a salon knows a customer by."""

    salon_id: str
    conversation_ids: list[str]
    phone_numbers: list[str]
    user_ids: list[str]


# Conversations that have the phone number or the user_id asked for, or the user_id of the one with the phone number.
THEIRS = """salon_id = %(salon_id)s AND (
            phone_number = %(phone_number)s OR user_id = %(user_id)s OR user_id = (
                SELECT k.user_id FROM conversations AS k
                WHERE k.salon_id = %(salon_id)s AND k.phone_number = %(phone_number)s
            )
        )"""


async def user_ids(conn: AsyncConnection[Any], named: Named) -> set[str]:
    """Return the user_ids that a customer has now, with the one asked for.

    Source: indexes salon_id_phone_number, idx_conversations_salon_user.
    """
    query = f"SELECT user_id FROM conversations WHERE {THEIRS}"
    rows = await (await conn.execute(query.encode(), _given(named))).fetchall()
    return {user for user in (named.user_id, *(row[0] for row in rows)) if user}


async def lock_customer(conn: AsyncConnection[Any], named: Named) -> Customer:
    """Return what names a customer, their conversations locked for the transaction.

    The caller holds the locks of the user_ids. A message that is being inserted comes before this; a later one finds
    no conversation.
    Source: indexes salon_id_phone_number, idx_conversations_salon_user.
    """
    query = f"""
        SELECT conversation_id::text, phone_number, user_id FROM conversations
        WHERE {THEIRS}
        ORDER BY conversation_id FOR UPDATE"""
    rows = await (await conn.execute(query.encode(), _given(named))).fetchall()
    ids, phones, users = ([row[place] for row in rows] for place in range(3))
    return Customer(
        named.salon_id,
        ids,
        sorted({phone for phone in (named.phone_number, *phones) if phone}),
        sorted({user for user in (named.user_id, *users) if user}),
    )


async def erase_conversations(conn: AsyncConnection[Any], customer: Customer) -> None:
    """Take the customer out of their conversations.

    Source: index conversations_pkey.
    """
    query = """
        UPDATE conversations SET phone_number = NULL, user_id = NULL, customer_name = '', assignee = '', tags = '{}',
            status = 'ARCHIVED', unread_count = 0, service_window_expires_at = NULL, revision = revision + 1
        WHERE salon_id = %s AND conversation_id = ANY(%s::uuid[])"""
    await conn.execute(query, (customer.salon_id, customer.conversation_ids))


async def erase_messages(conn: AsyncConnection[Any], customer: Customer) -> int:
    """Leave of the customer's messages what counts and sums need; return how many there are.

    Source: indexes idx_messages_conversation_created, raw_messages_pkey, message_status_events_pkey.
    """
    query = """
        WITH written AS (
            SELECT message_id, whatsapp_id FROM messages
            WHERE salon_id = %(salon_id)s AND conversation_id = ANY(%(conversation_ids)s::uuid[])
        ), item AS (
            DELETE FROM raw_messages AS r USING written
            WHERE r.salon_id = %(salon_id)s AND r.message_id = written.message_id
        ), event AS (
            DELETE FROM message_status_events AS e USING written
            WHERE e.salon_id = %(salon_id)s AND e.whatsapp_id = written.whatsapp_id
        )
        UPDATE messages SET content = '', phone_number = NULL, whatsapp_id = NULL, media_id = NULL,
            reply_to_whatsapp_id = NULL, error_title = NULL
        WHERE salon_id = %(salon_id)s AND conversation_id = ANY(%(conversation_ids)s::uuid[])"""
    return (await conn.execute(query, customer._asdict())).rowcount


async def erase_ai_messages(conn: AsyncConnection[Any], customer: Customer) -> int:
    """Take the texts out of the AI messages of the customer's conversations; return how many there are.

    Source: index idx_ai_messages_conversation_created.
    """
    query = """
        UPDATE ai_messages SET content = '' WHERE salon_id = %s AND conversation_id = ANY(%s::uuid[])"""
    return (await conn.execute(query, (customer.salon_id, customer.conversation_ids))).rowcount


async def erase_webhook_failures(conn: AsyncConnection[Any], customer: Customer) -> None:
    """Delete the webhook items that name the customer.

    Source: index webhook_failures_pkey.
    """
    query = """
        DELETE FROM webhook_failures
        WHERE salon_id = %s AND EXISTS (SELECT FROM unnest(%s::text[]) AS name WHERE strpos(item, name) > 0)"""
    await conn.execute(query, (customer.salon_id, _in_json(customer)))


async def erase_replies(conn: AsyncConnection[Any], customer: Customer) -> None:
    """Empty the replies kept for a request_id that name the customer or one of their conversations.

    Source: index messaging_requests_pkey.
    """
    query = """
        UPDATE messaging_requests SET reply = ''
        WHERE salon_id = %s AND EXISTS (SELECT FROM unnest(%s::bytea[]) AS name WHERE position(name IN reply) > 0)"""
    names = (*customer.phone_numbers, *customer.user_ids, *customer.conversation_ids)
    await conn.execute(query, (customer.salon_id, [name.encode() for name in names]))


def _given(named: Named) -> dict[str, str | None]:
    """Return what names a customer; what is not given equals nothing."""
    return {field: value or None for field, value in named._asdict().items()}


def _in_json(customer: Customer) -> Sequence[str]:
    """Return the customer's names as an item may have them: a number without its `+`, a user_id as a whole string."""
    users = [json.dumps(user, ensure_ascii=ascii_only) for user in customer.user_ids for ascii_only in (True, False)]
    return [*(phone.removeprefix("+") for phone in customer.phone_numbers), *users]
