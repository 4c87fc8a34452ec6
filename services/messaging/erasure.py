"""Erasure of a customer: removes what identifies them, and the texts written with them."""

import json
import re
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from parlor.messaging.v1.messaging_pb2 import EraseCustomerResponse, Message
from services.messaging.conversation_queries import Named
from services.messaging.number_patterns import in_whatsapp_id, pattern
from services.phones import spellings


class Customer(NamedTuple):
    """All conversations and names of a customer of a salon."""

    salon_id: str
    conversation_ids: list[str]
    phone_numbers: list[str]
    user_ids: list[str]

    @property
    def in_whatsapp_ids(self) -> str:
        """A regular expression that finds the customer in WhatsApp message ids."""
        return "|".join(map(in_whatsapp_id, (*self.phone_numbers, *self.user_ids)))


# The tag of a Message's whatsapp_id, which precedes its length.
WHATSAPP_ID_TAG = Message(whatsapp_id="x").SerializeToString()[:1]

# The conversations with the given phone number or user_id, or with the user_id of the one with the phone number.
OF_CUSTOMER = """salon_id = %(salon_id)s AND (
            phone_number = ANY (%(phone_numbers)s::text[]) OR user_id = %(user_id)s OR user_id = ANY (ARRAY(
                SELECT k.user_id FROM conversations AS k
                WHERE k.salon_id = %(salon_id)s AND k.phone_number = ANY (%(phone_numbers)s::text[])
            ))
        )"""


async def erase_customer(conn: AsyncConnection[Any], customer: Customer) -> EraseCustomerResponse:
    """Erase a customer whose conversations are locked; return the counts of rows."""
    await erase_replies(conn, customer)
    await erase_conversations(conn, customer)
    response = EraseCustomerResponse(
        conversations=len(customer.conversation_ids),
        messages=await erase_messages(conn, customer),
        ai_messages=await erase_ai_messages(conn, customer),
    )
    await erase_webhook_failures(conn, customer)
    await erase_early_statuses(conn, customer)
    return response


async def customer_names(conn: AsyncConnection[Any], named: Named) -> set[str]:
    """Return the phone numbers and user_ids of a customer, including the given ones.

    Source: indexes salon_id_phone_number, idx_conversations_salon_user.
    """
    query = f"SELECT phone_number, user_id FROM conversations WHERE {OF_CUSTOMER}"
    rows = await (await conn.execute(query.encode(), _given(named))).fetchall()
    return {name for row in ((named.phone_number, named.user_id), *rows) for name in row if name}


async def lock_customer(conn: AsyncConnection[Any], named: Named) -> Customer:
    """Return a customer and lock their conversations for the transaction.

    The caller holds the locks of their names, so that no message of theirs is inserted until the transaction ends.
    Source: indexes salon_id_phone_number, idx_conversations_salon_user.
    """
    query = f"""
        SELECT conversation_id::text, phone_number, user_id FROM conversations
        WHERE {OF_CUSTOMER}
        ORDER BY phone_number, user_id, conversation_id FOR UPDATE"""
    rows = await (await conn.execute(query.encode(), _given(named))).fetchall()
    ids, phones, users = ([row[column] for row in rows] for column in range(3))
    return Customer(
        named.salon_id,
        ids,
        sorted({phone for phone in (named.phone_number, *phones) if phone}),
        sorted({user for user in (named.user_id, *users) if user}),
    )


async def erase_conversations(conn: AsyncConnection[Any], customer: Customer) -> None:
    """Remove the customer from their conversations.

    Source: index conversations_pkey.
    """
    query = """
        UPDATE conversations SET phone_number = NULL, user_id = NULL, customer_name = '',
            customer_named_at = NULL, assignee = '', tags = '{}', status = 'ARCHIVED', unread_count = 0,
            service_window_expires_at = NULL, revision = revision + 1
        WHERE salon_id = %s AND conversation_id = ANY(%s::uuid[])"""
    await conn.execute(query, (customer.salon_id, customer.conversation_ids))


async def erase_messages(conn: AsyncConnection[Any], customer: Customer) -> int:
    """Keep of the customer's messages only what counts and sums need; return their number.

    Source: indexes idx_messages_conversation_created, messages_pkey, raw_messages_pkey, message_status_events_pkey,
    idx_message_amendments_target.
    """
    query = """
        WITH written AS (
            SELECT message_id, whatsapp_id FROM messages
            WHERE salon_id = %(salon_id)s AND conversation_id = ANY(%(conversation_ids)s::uuid[])
            ORDER BY message_id FOR UPDATE
        ), item AS (
            DELETE FROM raw_messages AS r USING written
            WHERE r.salon_id = %(salon_id)s AND r.message_id = written.message_id
        ), event AS (
            DELETE FROM message_status_events AS e USING written
            WHERE e.salon_id = %(salon_id)s AND e.whatsapp_id = written.whatsapp_id
        ), amendment AS (
            DELETE FROM message_amendments AS a USING written
            WHERE a.salon_id = %(salon_id)s AND a.target_whatsapp_id = written.whatsapp_id
        )
        UPDATE messages SET content = '', phone_number = NULL, whatsapp_id = NULL, media_id = NULL,
            reply_to_whatsapp_id = NULL, error_title = NULL, details = NULL
        FROM written WHERE messages.salon_id = %(salon_id)s AND messages.message_id = written.message_id"""
    return (await conn.execute(query, customer._asdict())).rowcount


async def erase_ai_messages(conn: AsyncConnection[Any], customer: Customer) -> int:
    """Remove the texts of the AI messages of the customer's conversations; return their number.

    Source: index idx_ai_messages_conversation_created.
    """
    query = """
        UPDATE ai_messages SET content = '' WHERE salon_id = %s AND conversation_id = ANY(%s::uuid[])"""
    return (await conn.execute(query, (customer.salon_id, customer.conversation_ids))).rowcount


async def erase_webhook_failures(conn: AsyncConnection[Any], customer: Customer) -> None:
    """Delete stored webhook items that the customer sent, or that name the customer.

    Source: index webhook_failures_pkey. Reads all failures of the salon.
    """
    query = """
        DELETE FROM webhook_failures
        WHERE salon_id = %(salon_id)s AND (
            phone_number = ANY(%(phone_numbers)s) OR user_id = ANY(%(user_ids)s)
            OR EXISTS (SELECT FROM unnest(%(patterns)s::text[]) AS pattern WHERE item ~ pattern)
        )"""
    users = [re.escape(json.dumps(user)) for user in customer.user_ids]
    patterns = [*map(pattern, customer.phone_numbers), *users, customer.in_whatsapp_ids]
    await conn.execute(query, customer._asdict() | {"patterns": patterns})


async def erase_early_statuses(conn: AsyncConnection[Any], customer: Customer) -> None:
    """Delete status events of the customer's messages whose message never came.

    Source: index message_status_events_pkey. Reads all ids of the salon.
    """
    query = """
        DELETE FROM message_status_events
        WHERE salon_id = %s AND whatsapp_id ~ %s"""
    await conn.execute(query, (customer.salon_id, customer.in_whatsapp_ids))


async def erase_replies(conn: AsyncConnection[Any], customer: Customer) -> None:
    """Empty the replies kept for a request_id that name the customer, their conversations or one of their messages.

    A name must be an entire field of the reply, not a part of another name or text. A reply to a status that came
    before its message has only the whatsapp_id, which `erase_messages` removes: this must run first.
    Source: indexes messaging_requests_pkey, idx_messages_conversation_created.
    """
    query = """
        UPDATE messaging_requests AS r SET reply = ''
        WHERE salon_id = %(salon_id)s AND (
            EXISTS (SELECT FROM unnest(%(names)s::bytea[]) AS name WHERE position(name IN reply) > 0)
            OR encode(reply, 'escape') ~ %(in_whatsapp_ids)s
            OR substring(reply FOR length(%(status)s::bytea)) = %(status)s::bytea AND EXISTS (
                SELECT FROM messages AS m
                WHERE m.salon_id = r.salon_id AND m.conversation_id = ANY(%(conversation_ids)s::uuid[])
                    AND position(convert_to(m.whatsapp_id, 'UTF8') IN r.reply) > 0
            )
        )"""
    names = (*customer.phone_numbers, *customer.user_ids, *customer.conversation_ids)
    params = {
        **customer._asdict(),
        "names": [_field(name) for name in names],
        "in_whatsapp_ids": customer.in_whatsapp_ids,
        "status": Message(salon_id=customer.salon_id).SerializeToString() + WHATSAPP_ID_TAG,
    }
    await conn.execute(query, params)


def _field(name: str) -> bytes:
    """Return a text as a field of a reply, without the field's tag: its length and the text."""
    return Message(whatsapp_id=name).SerializeToString().removeprefix(WHATSAPP_ID_TAG)


def _given(named: Named) -> dict[str, Any]:
    """Return the names of a customer, None for those that are not given, and the number in each spelling."""
    phone_numbers = spellings(named.phone_number) if named.phone_number else []
    return {field: value or None for field, value in named._asdict().items()} | {"phone_numbers": phone_numbers}
