"""The statements on conversations."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from psycopg import AsyncConnection

from libs.messages import (
    NOT_STORED,
    SNAPSHOT_XMIN,
    Loaded,
    encode_repeated,
    encoder,
    fetch_batch,
    fetch_one,
    fetch_returned,
    unnest,
    where,
)
from libs.server import fitting
from parlor.messaging.v1.messaging_pb2 import Conversation, Message
from services.messaging.identity_queries import conversation_of, is_identity
from services.messaging.message_queries import MESSAGE

CONVERSATION = (
    "conversation_id::text, salon_id, phone_number, user_id, customer_name,"
    " 'CONVERSATION_STATUS_' || status AS status, assignee, NULLIF(tags, '{}') AS tags,"
    " unread_count, started_at AS start_time, last_message_at AS last_message_time,"
    " service_window_expires_at AS service_window_expires_time, revision::text AS etag,"
    " 'CONVERSATION_KIND_' || kind AS kind, group_id"
)
# The columns that name a conversation, and the SQL that finds it by each of several columns of `wanted`.
NAMES = ("conversation_id", "phone_number", "user_id")
OF_NAME = {name: f"conversations.conversation_id = {conversation_of(name, 'wanted')}" for name in NAMES}
NEWEST = "ORDER BY last_message_at DESC, conversations.conversation_id DESC LIMIT"


class Named(NamedTuple):
    """The names of a conversation: at least one is not empty, and all that are not must match."""

    salon_id: str
    conversation_id: str
    phone_number: str
    user_id: str

    @property
    def given(self) -> dict[str, str]:
        """The names that are not empty."""
        return {field: value for field, value in self._asdict().items() if value}

    def is_current(self, conversation_id: bytes, phone_number: bytes | None) -> bool:
        """Return whether the conversation that was found, as in CONVERSATION, still has the id and the phone number."""
        return (not self.conversation_id or self.conversation_id.encode() == conversation_id) and (
            bool(self.conversation_id) or not self.phone_number or self.phone_number.encode() == phone_number
        )

    def __str__(self) -> str:
        """Return the name for error texts: the id, or the name of the field, since its value identifies a customer."""
        return f"{self.salon_id}/{self.conversation_id or ('phone_number' if self.phone_number else 'user_id')}"


class ConversationQuery(NamedTuple):
    """A conversation to read, and the number of its newest messages."""

    named: Named
    messages: int

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the statement."""
        return {**self.named.given, "messages": self.messages}

    def names(self) -> tuple[str, ...]:
        """Return the names of the parameters, on which the text of the statement depends."""
        return tuple(self.params)


async def conversations_with_messages(
    conn: AsyncConnection[Any], wanted: Sequence[ConversationQuery]
) -> list[Loaded[bytes | None]]:
    """Return each conversation with its newest messages, newest first, in one statement. All give the same names.

    What is read by a name that the conversation no longer has is not stored: a write invalidates those it has. Nor is
    that a customer has no conversation: the first message invalidates the names that it then has.
    Source: report, "N+1 Query Elimination"; indexes conversations_pkey, salon_id_phone_number or
    customer_identities_pkey, and idx_messages_conversation_created.
    """
    statement = conversation_statement(wanted[0].names())
    xmins, names, columns, slices = await fetch_batch(conn, statement, [query.params for query in wanted])
    first = names.index("message_id")
    firsts = [slices[place].start for place in range(len(wanted))]
    named = [[column[row] for row in firsts] for column in columns[:first]]
    conversations = encoder(Conversation, *names[:first])(named)
    messages = encoder(Message, *names[first:])(columns[first:])
    found: list[Loaded[bytes | None]] = []
    for place, conversation in enumerate(conversations):
        rows = slices[place]
        if columns[0][rows.start] is None:
            found.append(Loaded(xmins[rows.start], None))
            continue
        newest = fitting(messages[rows]) if columns[first][rows.start] is not None else []
        is_current = wanted[place].named.is_current(columns[0][rows.start], columns[2][rows.start])
        body = conversation + encode_repeated(newest, Conversation.MESSAGES_FIELD_NUMBER)
        found.append(Loaded(xmins[rows.start] if is_current else NOT_STORED, body))
    return found


@cache
def conversation_statement(names: tuple[str, ...]) -> str:
    """Return the statement that reads conversations with their messages; `names` are those of its parameters."""
    types = {
        "salon_id": "text",
        "conversation_id": "uuid",
        "phone_number": "text",
        "user_id": "text",
        "messages": "int",
    }
    xmin = "xmin"
    if tagged := next((name for name in ("conversation_id", "phone_number") if name in names), ""):
        absent = f"conversation.conversation_id IS NULL AND {is_identity(tagged)}"
        xmin = f"CASE WHEN {absent} THEN {NOT_STORED} ELSE xmin END"
    return f"""
        SELECT {xmin} AS xmin, place, conversation.*, message.*
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}
        LEFT JOIN LATERAL (
            SELECT {CONVERSATION} FROM conversations WHERE salon_id = wanted.salon_id AND {where(OF_NAME, names)}
        ) AS conversation ON true
        LEFT JOIN LATERAL (
            SELECT {MESSAGE} FROM messages WHERE conversation_id = conversation.conversation_id::uuid
            ORDER BY created_at DESC, messages.message_id DESC LIMIT wanted.messages
        ) AS message ON message.salon_id = conversation.salon_id"""


async def lock_conversation(conn: AsyncConnection[Any], named: Named) -> Conversation | None:
    """Return a conversation, locked for the transaction; see `conversations_with_messages`."""
    given = ", ".join(
        f"%({name})s::{'uuid' if name == 'conversation_id' else 'text'} AS {name}" for name in named.given
    )
    query = f"""
        SELECT {CONVERSATION} FROM conversations
        WHERE salon_id = %(salon_id)s AND conversation_id = (
            SELECT conversations.conversation_id FROM (SELECT {given}) AS wanted
            JOIN conversations ON conversations.salon_id = wanted.salon_id
                AND {where(OF_NAME, tuple(named.given))}
        ) FOR UPDATE"""
    return await fetch_one(conn, Conversation, query, named.given)


async def count_unread_after(conn: AsyncConnection[Any], conversation: Conversation, message_id: str) -> int | None:
    """Return how many of a conversation's messages after a message count as unread, None if it has no such message.

    Those are the customer's messages and missed calls, see `kinds.rule`.
    Source: indexes messages_pkey, idx_messages_conversation_created.
    """
    query = """
        SELECT (
            SELECT count(*) FROM messages AS m
            WHERE m.conversation_id = seen.conversation_id AND m.salon_id || '' = seen.salon_id
                AND (m.created_at, m.message_id) > (seen.created_at, seen.message_id)
                AND m.direction = 'INBOUND' AND (m.counted OR m.details #>> '{call,status}' = 'CALL_STATUS_MISSED')
        )
        FROM messages AS seen WHERE seen.salon_id = %s AND seen.message_id = %s AND seen.conversation_id = %s"""
    params = (conversation.salon_id, message_id, conversation.conversation_id)
    row = await (await conn.execute(query.encode(), params)).fetchone()
    return row and row[0]


async def update_conversation(
    conn: AsyncConnection[Any],
    conversation: Conversation,
    column: Literal["status", "assignee", "tags", "unread_count"],
    value: object,
) -> Conversation:
    """Set a column of a conversation; return the updated conversation."""
    query = f"""
        UPDATE conversations SET {column} = %s, revision = revision + 1 WHERE salon_id = %s AND conversation_id = %s
        RETURNING {CONVERSATION}"""
    return await fetch_returned(conn, Conversation, query, (value, conversation.salon_id, conversation.conversation_id))
