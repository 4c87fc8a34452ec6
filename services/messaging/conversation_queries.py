"""The statements on conversations, one function each."""

from typing import Any, Literal, NamedTuple

from psycopg import AsyncConnection

from libs.db import STAMP, Loaded, elements, encoder, fetch_one, fetch_page, fetch_returned, fetch_undecoded
from libs.rpc import Page, fitting
from parlor.messaging.v1.messaging_pb2 import Conversation, ConversationStatus, Message
from services.messaging.message_queries import MESSAGE

COLUMNS = (
    "conversation_id, salon_id, phone_number, user_id, customer_name, status, assignee, tags, unread_count, started_at,"
    " last_message_at, service_window_expires_at, revision"
)
CONVERSATION = (
    "conversation_id::text, salon_id, phone_number, user_id, customer_name,"
    " 'CONVERSATION_STATUS_' || status AS status, assignee, NULLIF(tags, '{}') AS tags,"
    " unread_count, started_at AS start_time, last_message_at AS last_message_time,"
    " service_window_expires_at AS service_window_expires_time, revision::text AS etag"
)
NEWEST = "ORDER BY last_message_at DESC, conversations.conversation_id DESC LIMIT"


class Named(NamedTuple):
    """What names a conversation: at least one is not empty, and all that are not must agree."""

    salon_id: str
    conversation_id: str
    phone_number: str
    user_id: str

    @property
    def where(self) -> str:
        """The condition, whose parameters are named as the fields."""
        return " AND ".join(f"{field} = %({field})s" for field, value in self._asdict().items() if value)

    def __str__(self) -> str:
        """Return the name that an error tells."""
        return f"{self.salon_id}/{self.conversation_id or self.phone_number or self.user_id}"


class Filters(NamedTuple):
    """Which conversations of a salon to list; what is empty or false lets all pass."""

    salon_id: str
    status: str
    tag: str
    unread_only: bool
    assignee: str

    @property
    def branches(self) -> list[str]:
        """The conditions whose conversations together are wanted; without any filter one of each status.

        So each is served by an index: that of the tag, else of the assignee, the unread or the status.
        """
        conditions = {
            "tag": "tags @> ARRAY[%(tag)s::text]",
            "assignee": "assignee = %(assignee)s AND assignee <> ''",
            "unread_only": "unread_count > 0",
            "status": "status = %(status)s",
        }
        wanted = [condition for field, condition in conditions.items() if getattr(self, field)]
        statuses = (name.removeprefix("CONVERSATION_STATUS_") for name in ConversationStatus.keys()[1:])
        return [" AND ".join(wanted)] if wanted else [f"status = '{status}'" for status in statuses]


async def conversation_with_messages(
    conn: AsyncConnection[Any], named: Named, message_limit: int
) -> Loaded[bytes | None]:
    """Return a conversation with up to `message_limit` messages, newest first, in one statement.

    Of several of a user_id it is the one with the newest activity.
    Source: report, "N+1 Query Elimination"; indexes conversations_pkey, salon_id_phone_number or
    idx_conversations_salon_user, and idx_messages_conversation_created.
    """
    query = f"""
        SELECT stamp, conversation.*, message.*
        FROM {STAMP}
        LEFT JOIN LATERAL (
            SELECT {CONVERSATION} FROM conversations WHERE {named.where} {NEWEST} 1
        ) AS conversation ON true
        LEFT JOIN LATERAL (
            SELECT {MESSAGE} FROM messages WHERE conversation_id = conversation.conversation_id::uuid
            ORDER BY created_at DESC, messages.message_id DESC LIMIT %(limit)s
        ) AS message ON message.salon_id = conversation.salon_id"""
    names, rows = await fetch_undecoded(conn, query, {**named._asdict(), "limit": message_limit})
    if rows[0][1] is None:
        return Loaded(rows[0][0], None)
    first = names.index("message_id")
    conversation, message = encoder(Conversation, *names[1:first]), encoder(Message, *names[first:])
    messages = fitting([message(row[first:]) for row in rows if row[first] is not None])
    return Loaded(rows[0][0], conversation(rows[0][1:first]) + elements(messages, Conversation.MESSAGES_FIELD_NUMBER))


async def list_conversations(conn: AsyncConnection[Any], filters: Filters, page: Page) -> Loaded[list[bytes]]:
    """Return up to one conversation more than the page has, newest activity first.

    Source: report, "Conversation Indexes" 9; indexes idx_conversations_salon_tags,
    idx_conversations_salon_assignee_last, idx_conversations_salon_unread_last, idx_conversations_salon_status_last.
    """
    after = (
        " AND (last_message_at, conversation_id) < (timestamptz 'epoch' + %(after)s * interval '1 us', %(id)s::uuid)"
        if page.after_id
        else ""
    )
    branches = " UNION ALL ".join(
        f"(SELECT {COLUMNS} FROM conversations WHERE salon_id = %(salon_id)s AND {condition}{after} {NEWEST} %(limit)s)"
        for condition in filters.branches
    )
    query = f"""
        SELECT stamp, page.*
        FROM {STAMP} LEFT JOIN LATERAL (
            SELECT {CONVERSATION} FROM ({branches}) AS conversations {NEWEST} %(limit)s
        ) AS page ON true"""
    return await fetch_page(conn, Conversation, query, filters._asdict() | page.params)


async def lock_conversation(conn: AsyncConnection[Any], named: Named) -> Conversation | None:
    """Return a conversation, locked for the transaction; see `conversation_with_messages`."""
    query = f"SELECT {CONVERSATION} FROM conversations WHERE {named.where} {NEWEST} 1 FOR UPDATE"
    return await fetch_one(conn, Conversation, query, named._asdict())


async def update_conversation(
    conn: AsyncConnection[Any],
    conversation: Conversation,
    column: Literal["status", "assignee", "tags", "unread_count"],
    value: object,
) -> Conversation:
    """Set a column of a conversation; return it as it is now."""
    query = f"""
        UPDATE conversations SET {column} = %s, revision = revision + 1 WHERE salon_id = %s AND conversation_id = %s
        RETURNING {CONVERSATION}"""
    return await fetch_returned(conn, Conversation, query, (value, conversation.salon_id, conversation.conversation_id))
