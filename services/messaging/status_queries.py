"""The statements on what WhatsApp says became of messages, and the fold of all of it into one state."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement, json_rows
from libs.messages import encode_row, fetch_returned, text_array
from parlor.messaging.v1.messaging_pb2 import Message
from services.messaging.message_queries import MESSAGE

# What `fold` makes.
FOLDED = "status, error_code, error_title, pricing_category, billable, cost_micros, currency_code, conversation_origin"


# What an event may tell besides the status itself.
TOLD = ("error_code", "error_title", "pricing_category", "billable", "cost_micros", "conversation_origin")


class NewStatus(NamedTuple):
    """A status to record; `occurred_at` None is now."""

    salon_id: str
    whatsapp_id: str
    status: str
    occurred_at: datetime | None
    error_code: int | None
    error_title: str | None
    pricing_category: str | None
    billable: bool | None
    cost_micros: int | None
    currency_code: str | None
    conversation_origin: str | None


class Place(NamedTuple):
    """What names a conversation."""

    salon_id: str
    conversation_id: str
    phone_number: str


class Changed(NamedTuple):
    """A message that was written: where it is, and its row."""

    place: Place
    names: list[str]
    row: Sequence[Any]

    @property
    def is_unknown(self) -> bool:
        """Whether it is of a type that is not known."""
        return bool(self.row[self.names.index("type")] == b"MESSAGE_TYPE_UNKNOWN")

    def encoded(self) -> bytes:
        """Return the message's bytes."""
        return encode_row(Message, self.names, self.row)


def place(row: Sequence[bytes]) -> Place:
    """Read a salon_id, a conversation_id and a phone_number."""
    return Place(row[0].decode(), row[1].decode(), (row[2] or b"").decode())


def changed(names: list[str], rows: list[Any]) -> list[Changed]:
    """Read messages."""
    return [Changed(place(row[1:4]), names, row) for row in rows]


def told(row: str) -> str:
    """Return the columns of what an event tells, as SQL."""
    return ", ".join(f"{row}.{column}" for column in TOLD)


def fold(salon_id: str, whatsapp_id: str, cost_micros: str, currency_code: str) -> str:
    """Return the SELECT of a message's state, FOLDED, from all its events: any order of arrival ends the same.

    The arguments are SQL: the message, and what it costs unless an event has a price. Of each field counts the highest
    status that has it, of several such events the earliest (decision 0006).
    """
    said = "(array_agg({0} ORDER BY rank DESC, occurred_at) FILTER (WHERE {0} IS NOT NULL))[1]".format
    failed = "(array_agg({} ORDER BY occurred_at) FILTER (WHERE e.status = 'FAILED'))[1]".format
    return f"""
        SELECT coalesce(status, 'PENDING') AS status, error_code, error_title, pricing_category, billable,
            CASE WHEN billable IS NOT FALSE THEN coalesce(said.cost_micros, {cost_micros}) ELSE 0 END AS cost_micros,
            CASE WHEN billable IS NOT FALSE THEN coalesce(said.currency_code, {currency_code}) END AS currency_code,
            conversation_origin
        FROM (
            SELECT {said("e.status")} AS status, {failed("error_code")} AS error_code,
                {failed("error_title")} AS error_title, {said("pricing_category")} AS pricing_category,
                {said("billable")} AS billable, {said("cost_micros")} AS cost_micros,
                {said("currency_code")} AS currency_code, {said("conversation_origin")} AS conversation_origin
            FROM message_status_events AS e,
                array_position(ARRAY['PENDING', 'SENT', 'FAILED', 'DELIVERED', 'READ'], e.status) AS rank
            WHERE e.salon_id = {salon_id} AND e.whatsapp_id = {whatsapp_id}
        ) AS said"""


def insert_statuses(statuses: Sequence[NewStatus]) -> Statement[list[tuple[str, str]]]:
    """Keep the statuses that are not there yet; return the salon_id and whatsapp_id of each.

    The caller holds the locks of the whatsapp_ids, and `apply_statuses` follows: a statement does not see its own rows.
    Without an occurred_at any status of its kind that tells the same counts as it.
    Source: indexes message_status_events_pkey, whatsapp_id.
    """
    return Statement(
        _INSERT_STATUSES,
        {"statuses": json_rows(statuses)},
        lambda _, rows: [(salon_id.decode(), whatsapp_id.decode()) for salon_id, whatsapp_id in rows],
    )


_INSERT_STATUSES = f"""
    INSERT INTO message_status_events (salon_id, whatsapp_id, status, occurred_at, error_code, error_title,
        pricing_category, billable, cost_micros, currency_code, conversation_origin, early_since)
    SELECT DISTINCT ON (salon_id, whatsapp_id, status, coalesce(occurred_at, now()))
        salon_id, whatsapp_id, status, coalesce(occurred_at, now()), error_code, error_title, pricing_category,
        billable, cost_micros, currency_code, conversation_origin, CASE WHEN NOT EXISTS (
            SELECT FROM messages AS m WHERE m.salon_id = given.salon_id AND m.whatsapp_id = given.whatsapp_id
        ) THEN now() END
    FROM ROWS FROM (json_to_recordset(%(statuses)s::json) AS (salon_id text, whatsapp_id text, status text,
        occurred_at timestamptz, error_code int, error_title text, pricing_category text, billable boolean,
        cost_micros bigint, currency_code text, conversation_origin text
    )) WITH ORDINALITY AS given (salon_id, whatsapp_id, status, occurred_at, error_code, error_title,
        pricing_category, billable, cost_micros, currency_code, conversation_origin, place)
    WHERE occurred_at IS NOT NULL OR NOT EXISTS (
        SELECT FROM message_status_events AS e
        WHERE e.salon_id = given.salon_id AND e.whatsapp_id = given.whatsapp_id AND e.status = given.status
            AND (num_nonnulls({told("given")}) = 0 OR ({told("e")}) IS NOT DISTINCT FROM ({told("given")}))
    )
    ORDER BY salon_id, whatsapp_id, status, coalesce(occurred_at, now()), place
    ON CONFLICT DO NOTHING
    RETURNING salon_id, whatsapp_id"""


def apply_statuses(statuses: Sequence[NewStatus]) -> Statement[list[Changed]]:
    """Fold the events of messages into them where this transaction has added some; return those messages.

    Several messages are locked in the order of their ids, as whatever changes several does.
    Source: indexes whatsapp_id, messages_pkey, message_status_events_pkey.
    """
    params = {
        "salon_ids": text_array(status.salon_id for status in statuses),
        "whatsapp_ids": text_array(status.whatsapp_id for status in statuses),
    }
    return Statement(_APPLY_STATUSES, params, changed)


_COST = "coalesce(m.recorded_cost_micros, m.cost_micros)"
_CURRENCY = "CASE WHEN m.recorded_cost_micros IS NULL THEN m.currency_code ELSE m.recorded_currency_code END"
_APPLY_STATUSES = f"""
    UPDATE messages AS m SET recorded_cost_micros = {_COST}, recorded_currency_code = {_CURRENCY},
        ({FOLDED}) = ({fold("m.salon_id", "m.whatsapp_id", _COST, _CURRENCY)})
    FROM (
        SELECT salon_id AS of_salon, message_id AS of_message
        FROM unnest(%(salon_ids)s::text[], %(whatsapp_ids)s::text[]) AS given (salon_id, whatsapp_id)
        JOIN messages AS told USING (salon_id, whatsapp_id)
        WHERE told.direction = 'OUTBOUND' AND EXISTS (
            SELECT FROM message_status_events AS e
            WHERE e.salon_id = told.salon_id AND e.whatsapp_id = told.whatsapp_id
                AND e.xmin = pg_current_xact_id()::xid
        )
        ORDER BY message_id FOR NO KEY UPDATE OF told
    ) AS named
    WHERE m.salon_id = of_salon AND m.message_id = of_message
    RETURNING {MESSAGE}"""


async def status_by_whatsapp_id(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> Message:
    """Return as much of a message as its statuses tell.

    Source: index message_status_events_pkey.
    """
    query = f"""
        SELECT %(salon_id)s AS salon_id, %(whatsapp_id)s AS whatsapp_id, 'MESSAGE_STATUS_' || status AS status,
            error_code, error_title, pricing_category, billable, cost_micros, currency_code, conversation_origin
        FROM ({fold("%(salon_id)s", "%(whatsapp_id)s", "0", "NULL")}) AS folded"""
    return await fetch_returned(conn, Message, query, {"salon_id": salon_id, "whatsapp_id": whatsapp_id})
