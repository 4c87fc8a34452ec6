"""The statements on what WhatsApp says became of messages, and the fold of all of it into one state."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import fetch_all, fetch_returned
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


async def insert_statuses(conn: AsyncConnection[Any], statuses: Sequence[NewStatus]) -> list[tuple[str, str]]:
    """Keep the statuses that are not there yet; return the salon_id and whatsapp_id of each.

    The caller holds the locks of the whatsapp_ids, and then calls `apply_statuses`: a statement does not see its own
    rows. Without an occurred_at any status of its kind that tells the same counts as it.
    Source: index message_status_events_pkey.
    """
    query = f"""
        INSERT INTO message_status_events (salon_id, whatsapp_id, status, occurred_at, error_code, error_title,
            pricing_category, billable, cost_micros, currency_code, conversation_origin)
        SELECT DISTINCT ON (salon_id, whatsapp_id, status, coalesce(occurred_at, now()))
            salon_id, whatsapp_id, status, coalesce(occurred_at, now()), error_code, error_title, pricing_category,
            billable, cost_micros, currency_code, conversation_origin
        FROM unnest(%(salon_id)s::text[], %(whatsapp_id)s::text[], %(status)s::text[], %(occurred_at)s::timestamptz[],
            %(error_code)s::int[], %(error_title)s::text[], %(pricing_category)s::text[], %(billable)s::boolean[],
            %(cost_micros)s::bigint[], %(currency_code)s::text[], %(conversation_origin)s::text[]
        ) WITH ORDINALITY AS given (salon_id, whatsapp_id, status, occurred_at, error_code, error_title,
            pricing_category, billable, cost_micros, currency_code, conversation_origin, place)
        WHERE occurred_at IS NOT NULL OR NOT EXISTS (
            SELECT FROM message_status_events AS e
            WHERE e.salon_id = given.salon_id AND e.whatsapp_id = given.whatsapp_id AND e.status = given.status
                AND (num_nonnulls({told("given")}) = 0 OR ({told("e")}) IS NOT DISTINCT FROM ({told("given")}))
        )
        ORDER BY salon_id, whatsapp_id, status, coalesce(occurred_at, now()), place
        ON CONFLICT DO NOTHING
        RETURNING salon_id, whatsapp_id"""
    columns = dict(zip(NewStatus._fields, map(list, zip(*statuses, strict=True)), strict=True))
    return await (await conn.execute(query.encode(), columns)).fetchall()


async def apply_statuses(conn: AsyncConnection[Any], names: Sequence[tuple[str, str]]) -> list[Message]:
    """Fold the events of messages, named by salon_id and whatsapp_id, into them; return those that are known.

    Several messages are locked in the order of their ids, as whatever changes several does.
    Source: indexes whatsapp_id, messages_pkey, message_status_events_pkey.
    """
    if not names:
        return []
    cost = "coalesce(m.recorded_cost_micros, m.cost_micros)"
    currency = "CASE WHEN m.recorded_cost_micros IS NULL THEN m.currency_code ELSE m.recorded_currency_code END"
    query = f"""
        UPDATE messages AS m SET recorded_cost_micros = {cost}, recorded_currency_code = {currency},
            ({FOLDED}) = ({fold("m.salon_id", "m.whatsapp_id", cost, currency)})
        FROM (
            SELECT salon_id AS of_salon, message_id AS of_message
            FROM unnest(%s::text[], %s::text[]) AS given (salon_id, whatsapp_id)
            JOIN messages AS told USING (salon_id, whatsapp_id) WHERE told.direction = 'OUTBOUND'
            ORDER BY message_id FOR NO KEY UPDATE OF told
        ) AS named
        WHERE m.salon_id = of_salon AND m.message_id = of_message
        RETURNING {MESSAGE}"""
    return await fetch_all(conn, Message, query, tuple(map(list, zip(*names, strict=True))))


async def status_by_whatsapp_id(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> Message:
    """Return as much of a message as its statuses tell.

    Source: index message_status_events_pkey.
    """
    query = f"""
        SELECT %(salon_id)s AS salon_id, %(whatsapp_id)s AS whatsapp_id, 'MESSAGE_STATUS_' || status AS status,
            error_code, error_title, pricing_category, billable, cost_micros, currency_code, conversation_origin
        FROM ({fold("%(salon_id)s", "%(whatsapp_id)s", "0", "NULL")}) AS folded"""
    return await fetch_returned(conn, Message, query, {"salon_id": salon_id, "whatsapp_id": whatsapp_id})
