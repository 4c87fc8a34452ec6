"""The statements that record messages and create, revive or rename their conversations."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from zlib import crc32

from psycopg import AsyncConnection

from libs.db import Statement, json_rows
from libs.messages import encode_row
from parlor.messaging.v1.messaging_pb2 import Message
from services.messaging.conversation_upsert_queries import of_customers, of_groups
from services.messaging.message_queries import MESSAGE
from services.messaging.status_fold import folded_status

MOST_LOCKS = 64


class NewMessage(NamedTuple):
    """A message to record, with the values of the columns.

    `salon_known`: the message may begin a conversation. `in_window`: it is recorded only if the service window is open.
    `unread`, `reopens`, `opens_window`, `counted`: see `kinds.Rule`. `language` None: that of the salon's newest
    message. `details`: fields of a Message. `item`: the message as JSON in the webhook body.
    """

    message_id: str
    salon_id: str
    salon_known: bool
    phone_number: str | None
    user_id: str | None
    customer_name: str
    direction: str
    group_id: str | None
    whatsapp_id: str | None
    type: str
    content: str
    media_id: str | None
    reply_to_whatsapp_id: str | None
    error_code: int | None
    error_title: str | None
    cost_micros: int
    currency_code: str | None
    language: str | None
    created_at: datetime
    in_window: bool
    unread: bool
    reopens: bool
    opens_window: bool
    counted: bool
    details: dict[str, Any] | None
    item: str | None


class ConversationKey(NamedTuple):
    """The id of a conversation and its phone number, "" if it has none."""

    conversation_id: str
    phone_number: str


class WrittenMessage(NamedTuple):
    """A message that a statement returned: its conversation, the names and the values of its columns.

    `is_amended`: reactions, edits or revokes of it came before it, and are still to be folded into it.
    """

    conversation: ConversationKey
    names: list[str]
    row: Sequence[Any]
    is_amended: bool = False

    @property
    def is_of_unknown_type(self) -> bool:
        """Whether WhatsApp's type of the message is not among ours."""
        return bool(self.row[self.names.index("type")] == b"MESSAGE_TYPE_UNKNOWN")

    @property
    def whatsapp_id(self) -> str:
        """WhatsApp's id of the message, "" if it has none."""
        return (self.row[self.names.index("whatsapp_id")] or b"").decode()

    def encoded(self) -> bytes:
        """Return the message in bytes."""
        return encode_row(Message, self.names, self.row)


def written_messages(names: list[str], rows: list[Any]) -> list[WrittenMessage]:
    """Read the result of a statement that returns MESSAGE."""
    return [WrittenMessage(_conversation(row), names, row) for row in rows]


def is_amended(message: str) -> str:
    """Return the column that says whether reactions, edits or revokes of a message came before its whatsapp_id."""
    return f"""EXISTS (
            SELECT FROM message_amendments AS a
            WHERE a.salon_id = {message}.salon_id AND a.target_whatsapp_id = {message}.whatsapp_id
        ) AS is_amended"""


def inserted_messages(names: list[str], rows: list[Any]) -> list[WrittenMessage]:
    """Read the result of a statement that returns MESSAGE and `is_amended`."""
    return [WrittenMessage(_conversation(row), names[:-1], row[:-1], row[-1]) for row in rows]


def _conversation(row: Sequence[Any]) -> ConversationKey:
    return ConversationKey(row[2].decode(), (row[3] or b"").decode())  # see MESSAGE


def message_lock(salon_id: str, name: str) -> str:
    """Return the name of the lock of a whatsapp_id, user_id or phone number of a salon.

    Each salon has MOST_LOCKS locks, shared by all its names: Postgres has room for some 6400 locks of all transactions,
    and a change of a webhook body has hundreds of names.
    """
    return f"message {salon_id} {crc32(name.encode()) % MOST_LOCKS}"


def insert_messages(messages: Sequence[NewMessage]) -> Statement[list[WrittenMessage]]:
    """Insert messages, and create or revive their conversations; return the inserted messages.

    Messages are left out if the salon already has their whatsapp_id, if the service window does not allow them (the
    caller rolls back then), or if they would begin a conversation and not `salon_known`. A message without a phone
    number belongs to the conversation with its user_id, under the phone number of that conversation or of another
    message with the user_id.
    The caller holds the locks of the whatsapp_ids, the user_ids and the phone numbers, so that no other transaction
    records messages or statuses of them meanwhile.
    Source: indexes whatsapp_id, salon_id_phone_number, conversations_user_id_key, idx_conversations_salon_user,
    message_status_events_pkey.
    """
    return Statement(_INSERT_MESSAGES, {"messages": json_rows(messages)}, inserted_messages)


def insert_group_messages(messages: Sequence[NewMessage]) -> Statement[list[WrittenMessage]]:
    """Insert messages of groups, as `insert_messages` does; the conversation is that of the group.

    Source: indexes whatsapp_id, conversations_group_id_key, message_status_events_pkey.
    """
    return Statement(_INSERT_GROUP_MESSAGES, {"messages": json_rows(messages)}, inserted_messages)


_NOT_RECORDED = """NOT EXISTS (
            SELECT FROM messages AS m WHERE m.salon_id = given.salon_id AND m.whatsapp_id = given.whatsapp_id
        )"""
_FOLDED_STATUS = folded_status(
    "placed.salon_id",
    "CASE WHEN placed.direction = 'OUTBOUND' THEN placed.whatsapp_id END",
    "placed.cost_micros",
    "placed.currency_code",
    "placed.details",
)
_RECORD = f"""recorded AS (
        INSERT INTO messages (salon_id, message_id, conversation_id, phone_number, direction, whatsapp_id, type,
            content, media_id, reply_to_whatsapp_id, language, created_at, recorded_cost_micros,
            recorded_currency_code, counted, details, status, error_code, error_title, pricing_category, billable,
            cost_micros, currency_code, conversation_origin)
        SELECT salon_id, message_id, conversation_id, phone, direction, whatsapp_id, type, content, media_id,
            reply_to_whatsapp_id, coalesce(language, (
                SELECT m.language FROM messages AS m WHERE m.salon_id = placed.salon_id
                ORDER BY m.created_at DESC LIMIT 1
            ), ''), created_at, placed.cost_micros, placed.currency_code,
            counted, folded.details,
            CASE WHEN direction = 'INBOUND' THEN 'RECEIVED' ELSE folded.status END,
            coalesce(placed.error_code, folded.error_code), coalesce(placed.error_title, folded.error_title),
            folded.pricing_category, folded.billable, folded.cost_micros, folded.currency_code,
            folded.conversation_origin
        FROM placed, LATERAL ({_FOLDED_STATUS}) AS folded
        WHERE NOT in_window OR created_at < service_window_expires_at
        RETURNING {MESSAGE}, {is_amended("messages")}
    ), raw AS (
        INSERT INTO raw_messages (salon_id, message_id, item)
        SELECT salon_id, message_id, item::json FROM placed WHERE item IS NOT NULL
    )
    SELECT * FROM recorded"""
_INSERT_MESSAGES = f"WITH {of_customers(_NOT_RECORDED, has_messages=True)}, {_RECORD}"
_INSERT_GROUP_MESSAGES = f"WITH {of_groups(_NOT_RECORDED)}, {_RECORD}"


async def has_conversation(conn: AsyncConnection[Any], message: NewMessage) -> bool:
    """Return whether the conversation of a message exists: its salon is known then.

    Source: indexes salon_id_phone_number, idx_conversations_salon_user.
    """
    query = b"""
        SELECT FROM conversations WHERE salon_id = %(salon_id)s AND phone_number = %(phone_number)s
        UNION ALL SELECT FROM conversations WHERE salon_id = %(salon_id)s AND user_id = %(user_id)s"""
    return bool((await conn.execute(query, message._asdict())).rowcount)


def assign_phone_numbers(messages: Sequence[NewMessage]) -> Statement[list[ConversationKey]]:
    """Assign the phone number of a new message to the conversation of its user_id that has none; return those.

    A phone number that has a conversation already stays with it. The caller holds the locks of the phone numbers and
    the user_ids.
    Source: indexes conversations_user_id_key, salon_id_phone_number, whatsapp_id, idx_messages_conversation_created.
    """
    return Statement(
        _ASSIGN_PHONE_NUMBERS,
        {"messages": json_rows(message for message in messages if message.phone_number and message.user_id)},
        lambda _, rows: [ConversationKey(identifier.decode(), number.decode()) for identifier, number in rows],
    )


_ASSIGN_PHONE_NUMBERS = """
    WITH given AS (
        SELECT DISTINCT ON (salon_id, user_id) salon_id, user_id, phone_number
        FROM json_to_recordset(%(messages)s::json) AS given (place int, salon_id text, user_id text, phone_number text,
            whatsapp_id text)
        WHERE NOT EXISTS (
            SELECT FROM messages AS m WHERE m.salon_id = given.salon_id AND m.whatsapp_id = given.whatsapp_id
        )
        ORDER BY salon_id, user_id, place
    ), found AS (
        SELECT DISTINCT ON (c.salon_id, given.phone_number) c.salon_id, c.conversation_id, given.phone_number
        FROM given JOIN conversations AS c
            ON c.salon_id = given.salon_id AND c.user_id = given.user_id AND c.phone_number IS NULL
        WHERE NOT EXISTS (
            SELECT FROM conversations AS k
            WHERE k.salon_id = given.salon_id AND k.phone_number = given.phone_number
        )
        ORDER BY c.salon_id, given.phone_number, c.conversation_id
    ), assigned AS (
        UPDATE conversations AS c SET phone_number = found.phone_number FROM found
        WHERE c.salon_id = found.salon_id AND c.conversation_id = found.conversation_id
        RETURNING c.salon_id, c.conversation_id, c.phone_number
    ), locked AS (
        SELECT m.salon_id, m.message_id, assigned.phone_number
        FROM assigned JOIN messages AS m
            -- The || rules out an index by salon: Postgres might read all its messages for each conversation.
            ON m.conversation_id = assigned.conversation_id AND m.salon_id || '' = assigned.salon_id
        ORDER BY m.message_id FOR NO KEY UPDATE OF m
    ), moved AS (
        UPDATE messages AS m SET phone_number = locked.phone_number FROM locked
        WHERE m.salon_id = locked.salon_id AND m.message_id = locked.message_id
    )
    SELECT conversation_id::text, phone_number FROM assigned"""
