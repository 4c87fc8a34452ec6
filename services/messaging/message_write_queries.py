"""The statements that record messages and create, revive or rename their conversations."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from zlib import crc32

from psycopg import AsyncConnection

from libs.db import Statement, json_rows
from libs.messages import encode_row
from parlor.messaging.v1.messaging_pb2 import Message
from services.messaging.identities import Claim
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
        """What the message says of its customer; None if it names them by one identity only."""
        if self.phone_number and self.user_id:
            return Claim(self.phone_number, self.user_id, self.created_at, self.whatsapp_id)
        return None


class ConversationKey(NamedTuple):
    """The id of a conversation and its phone number, "" if it has none."""

    conversation_id: str
    phone_number: str


class WrittenMessage(NamedTuple):
    """A message that a statement returned: its conversation, the names and the values of its columns."""

    conversation: ConversationKey
    names: list[str]
    row: Sequence[Any]

    @property
    def is_of_unknown_type(self) -> bool:
        """Whether WhatsApp's type of the message is not among ours."""
        return bool(self.row[self.names.index("type")] == b"MESSAGE_TYPE_UNKNOWN")

    def encoded(self) -> bytes:
        """Return the message in bytes."""
        return encode_row(Message, self.names, self.row)


def written_messages(names: list[str], rows: list[Any]) -> list[WrittenMessage]:
    """Read the result of a statement that returns MESSAGE."""
    return [
        WrittenMessage(ConversationKey(row[2].decode(), (row[3] or b"").decode()), names, row)  # see MESSAGE
        for row in rows
    ]


def message_lock(salon_id: str, name: str) -> str:
    """Return the name of the lock of a whatsapp_id, user_id or phone number of a salon.

    Each salon has MOST_LOCKS locks, shared by all its names: Postgres has room for some 6400 locks of all transactions,
    and a change of a webhook body has hundreds of names.
    """
    return f"message {salon_id} {crc32(name.encode()) % MOST_LOCKS}"


def insert_messages(messages: Sequence[NewMessage]) -> Statement[list[WrittenMessage]]:
    """Insert messages, and create or revive their conversations; return the inserted messages.

    Messages are left out if the salon already has their whatsapp_id, if the service window does not allow them (the
    caller rolls back then), or if they would begin a conversation and not `salon_known`. A message belongs to the
    customer of its user_id, or else of its phone number; claims that contradict this were settled before (see
    CustomerWrites.of_customers). New ones are those of new customers.
    The caller holds the locks of the whatsapp_ids, the user_ids and the phone numbers, so that no other transaction
    records messages or statuses of them meanwhile.
    Source: indexes whatsapp_id, customer_identities_pkey, conversations_pkey, message_status_events_pkey.
    """
    return Statement(_INSERT_MESSAGES, {"messages": json_rows(messages)}, written_messages)


# The newest identity of a kind of a customer whose conversation begins.
NEWEST_IDENTITY = """(
                SELECT i.identity FROM customer_identities AS i WHERE i.salon_id = customer.salon_id
                    AND i.customer_id = customer.conversation_id AND i.kind = '{}'
                ORDER BY i.seen_at DESC, i.identity LIMIT 1
            )"""
_INSERT_MESSAGES = f"""
    WITH given AS (
        SELECT DISTINCT ON (salon_id, coalesce('w' || whatsapp_id, place::text)) *
        FROM json_to_recordset(%(messages)s::json) AS given (place int, message_id uuid, salon_id text,
            salon_known boolean, phone_number text, user_id text, customer_name text, direction text,
            whatsapp_id text, type text, content text, media_id text, reply_to_whatsapp_id text,
            error_code int, error_title text, cost_micros bigint, currency_code text, language text,
            created_at timestamptz, in_window boolean,
            unread boolean, reopens boolean, opens_window boolean, counted boolean, details jsonb, item text)
        ORDER BY salon_id, coalesce('w' || whatsapp_id, place::text), place
    ), named AS (
        SELECT given.*, coalesce(u.customer_id, p.customer_id) AS customer_id,
            coalesce(phone_number, CASE WHEN user_id IS NOT NULL THEN
                max(phone_number) OVER (PARTITION BY given.salon_id, user_id)
            END) AS phone
        FROM given LEFT JOIN customer_identities AS p
            ON p.salon_id = given.salon_id AND p.identity = given.phone_number AND p.kind = 'PHONE_NUMBER'
        LEFT JOIN customer_identities AS u
            ON u.salon_id = given.salon_id AND u.identity = given.user_id AND u.kind = 'USER_ID'
        WHERE NOT EXISTS (
            SELECT FROM messages AS m WHERE m.salon_id = given.salon_id AND m.whatsapp_id = given.whatsapp_id
        )
    ), fresh AS (
        SELECT *, coalesce(customer_id::text, phone, 'u' || user_id) AS customer FROM named
        WHERE salon_known OR customer_id IS NOT NULL
    ), customer AS (
        SELECT salon_id, customer, customer_id IS NOT NULL AS is_known,
            coalesce(customer_id, gen_random_uuid()) AS conversation_id, max(phone) AS phone_number,
            min(created_at) AS started_at, max(created_at) AS last_message_at,
            (array_agg(user_id ORDER BY created_at DESC, place DESC) FILTER (WHERE user_id <> ''))[1] AS user_id,
            coalesce((array_agg(customer_name ORDER BY created_at DESC, customer_name DESC)
                FILTER (WHERE customer_name <> ''))[1], '') AS customer_name,
            max(created_at) FILTER (WHERE customer_name <> '') AS customer_named_at,
            count(*) FILTER (WHERE unread) AS unread_count, max(created_at) FILTER (WHERE reopens) AS reopened_at,
            max(created_at) FILTER (WHERE opens_window) + interval '24 hours' AS service_window_expires_at
        FROM fresh GROUP BY salon_id, customer, customer_id
    ), created AS (
        INSERT INTO customers (salon_id, customer_id)
        SELECT salon_id, conversation_id FROM customer WHERE NOT is_known
    ), identified AS (
        INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
        SELECT salon_id, identity, kind, conversation_id, started_at
        FROM customer, LATERAL (VALUES ('PHONE_NUMBER', phone_number), ('USER_ID', user_id)) AS named (kind, identity)
        WHERE NOT is_known AND identity IS NOT NULL
        ON CONFLICT ON CONSTRAINT customer_identities_pkey DO NOTHING
    ), conversation AS (
        INSERT INTO conversations AS c (salon_id, conversation_id, phone_number, user_id, customer_name,
            customer_named_at, started_at, last_message_at, unread_count, service_window_expires_at, reopened_at)
        SELECT salon_id, conversation_id,
            CASE WHEN is_first THEN {NEWEST_IDENTITY.format("PHONE_NUMBER")} ELSE phone_number END,
            CASE WHEN is_first THEN {NEWEST_IDENTITY.format("USER_ID")} ELSE user_id END, customer_name,
            customer_named_at, started_at, last_message_at, unread_count, service_window_expires_at, reopened_at
        FROM customer, LATERAL (SELECT is_known AND NOT EXISTS (
            SELECT FROM conversations AS k
            WHERE k.salon_id = customer.salon_id AND k.conversation_id = customer.conversation_id
        ) AS is_first) AS of_known
        ORDER BY salon_id, conversation_id
        ON CONFLICT ON CONSTRAINT conversations_pkey DO UPDATE SET
            status = CASE WHEN excluded.reopened_at IS NULL THEN c.status ELSE 'ACTIVE' END,
            revision = c.revision + 1,
            customer_name = CASE
                WHEN (excluded.customer_named_at, excluded.customer_name)
                    > (coalesce(c.customer_named_at, '-infinity'), c.customer_name) THEN excluded.customer_name
                ELSE c.customer_name
            END,
            customer_named_at = greatest(c.customer_named_at, excluded.customer_named_at),
            started_at = CASE WHEN c.has_messages THEN least(c.started_at, excluded.started_at)
                ELSE excluded.started_at END,
            last_message_at = CASE WHEN c.has_messages THEN greatest(c.last_message_at, excluded.last_message_at)
                ELSE excluded.last_message_at END,
            has_messages = true, reopened_at = greatest(c.reopened_at, excluded.reopened_at),
            unread_count = c.unread_count + excluded.unread_count,
            service_window_expires_at = greatest(c.service_window_expires_at, excluded.service_window_expires_at)
        RETURNING c.salon_id, c.conversation_id, c.phone_number, c.service_window_expires_at
    ), placed AS (
        SELECT fresh.*, conversation.conversation_id, conversation.phone_number AS current_number,
            conversation.service_window_expires_at
        FROM fresh JOIN customer USING (salon_id, customer) JOIN conversation USING (salon_id, conversation_id)
    ), recorded AS (
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
        FROM placed, LATERAL ({
    folded_status(
        "placed.salon_id",
        "CASE WHEN placed.direction = 'OUTBOUND' THEN placed.whatsapp_id END",
        "placed.cost_micros",
        "placed.currency_code",
        "placed.details",
    )
}) AS folded
        WHERE NOT in_window OR created_at < service_window_expires_at
        RETURNING {MESSAGE}
    ), raw AS (
        INSERT INTO raw_messages (salon_id, message_id, item)
        SELECT salon_id, message_id, item::json FROM placed WHERE item IS NOT NULL
    )
    SELECT * FROM recorded"""


async def has_customer(conn: AsyncConnection[Any], message: NewMessage) -> bool:
    """Return whether the customer of a message is known: then their salon is, too.

    Source: index customer_identities_pkey.
    """
    query = b"""
        SELECT FROM customer_identities WHERE salon_id = %(salon_id)s
            AND (identity, kind) IN ((%(phone_number)s, 'PHONE_NUMBER'), (%(user_id)s, 'USER_ID'))"""
    return bool((await conn.execute(query, message._asdict())).rowcount)
