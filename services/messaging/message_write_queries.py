"""The statements that record messages and create, revive or rename their conversations."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from zlib import crc32

from libs.db import Statement, json_rows
from libs.messages import encode_row
from parlor.messaging.v1.messaging_pb2 import Message
from services.messaging.conversation_upsert_queries import of_customers, of_groups
from services.messaging.identities import Claim
from services.messaging.kinds import AMENDMENTS
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

    @property
    def claim(self) -> Claim | None:
        """What the message says of its customer; None if it names them by one identity only, or is of a group."""
        if self.group_id is not None:
            return None
        notice = (self.details or {}).get("system", {})
        if notice.get("kind", "").startswith("user_changed_"):
            return self._change_of_identity(notice)
        if self.phone_number and self.user_id:
            amends = self.reply_to_whatsapp_id if self.type in AMENDMENTS else None
            return Claim(self.phone_number, self.user_id, self.created_at, self.whatsapp_id, amends=amends)
        return None

    def _change_of_identity(self, notice: Mapping[str, str]) -> Claim | None:
        """Return the claim of a system message: WhatsApp sends it in the name that the customer had."""
        number, user_id = notice.get("phone_number"), notice.get("user_id")
        if number is None and user_id is None:
            return None
        return Claim(
            number or self.phone_number,
            user_id,
            self.created_at,
            self.whatsapp_id,
            former_phone_number=self.phone_number if number and number != self.phone_number else None,
            former_user_id=notice.get("previous_user_id") or (self.user_id if self.user_id != user_id else None),
        )


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


def insert_messages(messages: Sequence[NewMessage], *, briefly: bool = False) -> Statement[list[WrittenMessage]]:
    """Insert messages, and create or revive their conversations; return the inserted messages.

    With `briefly` they can't be encoded: their contents are not returned.

    Messages are left out if the salon already has their whatsapp_id, if the service window does not allow them (the
    caller rolls back then), or if they would begin a conversation and not `salon_known`. A message belongs to the
    customer of its user_id, or else of its phone number; claims that contradict this were settled before (see
    CustomerWrites.of_customers). New ones are those of new customers.
    The caller holds the locks of the whatsapp_ids, the user_ids and the phone numbers, so that no other transaction
    records messages or statuses of them meanwhile.
    Source: indexes whatsapp_id, customer_identities_pkey, conversations_pkey, message_status_events_pkey.
    """
    query = _INSERT_BRIEFLY if briefly else _INSERT_MESSAGES
    return Statement(query, {"messages": json_rows(messages)}, inserted_messages)


def insert_group_messages(messages: Sequence[NewMessage]) -> Statement[list[WrittenMessage]]:
    """Insert messages of groups, as `insert_messages` does briefly; the conversation is that of the group.

    Source: indexes whatsapp_id, conversations_group_id_key, message_status_events_pkey.
    """
    return Statement(_INSERT_GROUP_MESSAGES, {"messages": json_rows(messages)}, inserted_messages)


# An archived message only has its name. Not NOT EXISTS: without statistics Postgres expects one row of it, and would
# compare each with each in later joins.
_NOT_RECORDED = """NOT coalesce((
            SELECT true FROM messages AS m WHERE m.salon_id = given.salon_id AND m.whatsapp_id = given.whatsapp_id
        ), (
            SELECT true FROM message_names AS n
            WHERE n.salon_id = given.salon_id AND n.name = message_name(given.whatsapp_id)
        ), false)"""
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
        SELECT salon_id, message_id, conversation_id, current_number, direction, whatsapp_id, type, content, media_id,
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
    )"""
_BRIEFLY = """
    SELECT message_id, salon_id, conversation_id, phone_number, whatsapp_id, type, is_amended FROM recorded"""
_OF_CUSTOMERS = f"WITH {of_customers(_NOT_RECORDED, has_messages=True)}, {_RECORD}"
_INSERT_MESSAGES = f"{_OF_CUSTOMERS} SELECT * FROM recorded"
_INSERT_BRIEFLY = f"{_OF_CUSTOMERS} {_BRIEFLY}"
_INSERT_GROUP_MESSAGES = f"WITH {of_groups(_NOT_RECORDED)}, {_RECORD} {_BRIEFLY}"
