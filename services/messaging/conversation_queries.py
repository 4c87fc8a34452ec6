"""The statements on conversations, one function each."""

from typing import Any

from psycopg import AsyncConnection

from libs.db import STAMP, Loaded, fetch_one, fetch_page, fetch_returned, fetch_rows
from libs.rpc import Page, fitting
from parlor.messaging.v1.messaging_pb2 import Conversation, ConversationStatus, Message
from services.messaging.message_queries import MESSAGE

CONVERSATION = (
    "conversation_id::text, salon_id, phone_number, 'CONVERSATION_STATUS_' || status AS status,"
    " started_at AS start_time, last_message_at AS last_message_time, revision::text AS etag"
)


async def conversation_by_phone_number(
    conn: AsyncConnection[Any], salon_id: str, phone_number: str, message_limit: int
) -> Loaded[Conversation | None]:
    """Return a conversation with up to `message_limit` messages, newest first, in one statement.

    Source: report, "N+1 Query Elimination"; indexes salon_id_phone_number, idx_messages_conversation_created.
    """
    query = f"""
        SELECT stamp, conversation.*, message.*
        FROM {STAMP}
        LEFT JOIN LATERAL (
            SELECT {CONVERSATION} FROM conversations WHERE salon_id = %(salon_id)s AND phone_number = %(phone_number)s
        ) AS conversation ON true
        LEFT JOIN LATERAL (
            SELECT {MESSAGE} FROM messages WHERE conversation_id = conversation.conversation_id::uuid
            ORDER BY created_at DESC, messages.message_id DESC LIMIT %(limit)s
        ) AS message ON message.salon_id = conversation.salon_id"""
    params = {"salon_id": salon_id, "phone_number": phone_number, "limit": message_limit}
    names, rows = await fetch_rows(conn, query, params)
    if rows[0][1] is None:
        return Loaded(rows[0][0], None)
    first = names.index("message_id")
    conversation = Conversation(**dict(zip(names[1:first], rows[0][1:first], strict=True)))
    messages = [Message(**dict(zip(names[first:], row[first:], strict=True))) for row in rows if row[first] is not None]
    conversation.messages.extend(fitting(messages))
    return Loaded(rows[0][0], conversation)


async def list_conversations(
    conn: AsyncConnection[Any], salon_id: str, status: str, page: Page
) -> Loaded[list[Conversation]]:
    """Return up to one conversation more than the page has, newest activity first.

    Without a status each status is a limited branch of its own, so that all stay on the index.
    Source: report, "Conversation Indexes" 9; index idx_conversations_salon_status_last.
    """
    after = (
        " AND (last_message_at, conversation_id) < (timestamptz 'epoch' + %(after)s * interval '1 us', %(id)s::uuid)"
        if page.after_id
        else ""
    )
    names = (
        [status] if status else [name.removeprefix("CONVERSATION_STATUS_") for name in ConversationStatus.keys()[1:]]
    )
    branches = " UNION ALL ".join(
        "(SELECT conversation_id, salon_id, phone_number, status, started_at, last_message_at, revision"
        f" FROM conversations WHERE salon_id = %(salon_id)s AND status = '{name}'{after}"
        " ORDER BY last_message_at DESC, conversation_id DESC LIMIT %(limit)s)"
        for name in names
    )
    query = f"""
        SELECT stamp, page.*
        FROM {STAMP} LEFT JOIN LATERAL (
            SELECT {CONVERSATION} FROM ({branches}) AS branch
            ORDER BY last_message_at DESC, branch.conversation_id DESC LIMIT %(limit)s
        ) AS page ON true"""
    params = {"salon_id": salon_id, "after": page.after_micros, "id": page.after_id, "limit": page.size + 1}
    return await fetch_page(conn, Conversation, query, params)


async def lock_conversation(
    conn: AsyncConnection[Any], salon_id: str, conversation_id: str, phone_number: str
) -> Conversation | None:
    """Return the conversation of an id or a phone number, of both if both are given, locked for the transaction."""
    query = f"SELECT {CONVERSATION} FROM conversations WHERE salon_id = %(salon_id)s"
    if conversation_id:
        query += " AND conversation_id = %(conversation_id)s"
    if phone_number:
        query += " AND phone_number = %(phone_number)s"
    params = {"salon_id": salon_id, "conversation_id": conversation_id, "phone_number": phone_number}
    return await fetch_one(conn, Conversation, query + " FOR UPDATE", params)


async def update_conversation_status(
    conn: AsyncConnection[Any], conversation: Conversation, status: str
) -> Conversation:
    """Set a conversation's status; return it as it is now."""
    query = f"""
        UPDATE conversations SET status = %s, revision = revision + 1 WHERE salon_id = %s AND conversation_id = %s
        RETURNING {CONVERSATION}"""
    return await fetch_returned(
        conn, Conversation, query, (status, conversation.salon_id, conversation.conversation_id)
    )
