"""Status events of messages: the statements that record them and fold them into the status of their message."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement, json_rows
from libs.messages import fetch_returned, text_array
from parlor.messaging.v1.messaging_pb2 import Message
from services.messaging.erased_ids import is_erased
from services.messaging.message_queries import MESSAGE
from services.messaging.message_write_queries import WrittenMessage, written_messages
from services.messaging.status_fold import FOLDED, RECORDED_COST, folded_status

# The columns of an event besides its status.
DETAILS = ("error_code", "error_title", "pricing_category", "billable", "cost_micros", "conversation_origin", "details")


class NewStatus(NamedTuple):
    """A status event to record; `occurred_at` None is now. `details`: fields of a MessageStatusEvent."""

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
    details: dict[str, Any] | None


def _details(row: str) -> str:
    return ", ".join(f"{row}.{column}" for column in DETAILS)


def insert_statuses(statuses: Sequence[NewStatus]) -> Statement[list[tuple[str, str]]]:
    """Insert the events that are not recorded yet; return the salon_id and whatsapp_id of each. Not of erased messages.

    The caller holds the locks of the whatsapp_ids and runs `fold_statuses` next: a statement does not see its own rows.
    An event without occurred_at equals any event with the same status and details.
    Source: indexes message_status_events_pkey, whatsapp_id, and those of `is_erased`.
    """
    return Statement(
        _INSERT_STATUSES,
        {"statuses": json_rows(statuses)},
        lambda _, rows: [(salon_id.decode(), whatsapp_id.decode()) for salon_id, whatsapp_id in rows],
    )


_INSERT_STATUSES = f"""
    INSERT INTO message_status_events (salon_id, whatsapp_id, status, occurred_at, error_code, error_title,
        pricing_category, billable, cost_micros, currency_code, conversation_origin, details, early_since)
    SELECT DISTINCT ON (salon_id, whatsapp_id, status, coalesce(occurred_at, now()))
        salon_id, whatsapp_id, status, coalesce(occurred_at, now()), error_code, error_title, pricing_category,
        billable, cost_micros, currency_code, conversation_origin, details, CASE WHEN NOT EXISTS (
            SELECT FROM messages AS m WHERE m.salon_id = given.salon_id AND m.whatsapp_id = given.whatsapp_id
        ) THEN now() END
    FROM json_to_recordset(%(statuses)s::json) AS given (place int, salon_id text, whatsapp_id text, status text,
        occurred_at timestamptz, error_code int, error_title text, pricing_category text, billable boolean,
        cost_micros bigint, currency_code text, conversation_origin text, details jsonb)
    WHERE NOT {is_erased("given.salon_id", "given.whatsapp_id")} AND (occurred_at IS NOT NULL OR NOT EXISTS (
        SELECT FROM message_status_events AS e
        WHERE e.salon_id = given.salon_id AND e.whatsapp_id = given.whatsapp_id AND e.status = given.status
            AND (num_nonnulls({_details("given")}) = 0 OR ({_details("e")}) IS NOT DISTINCT FROM ({_details("given")}))
    ))
    ORDER BY salon_id, whatsapp_id, status, coalesce(occurred_at, now()), place
    ON CONFLICT DO NOTHING
    RETURNING salon_id, whatsapp_id"""


def fold_statuses(statuses: Sequence[NewStatus]) -> Statement[list[WrittenMessage]]:
    """Fold all events of the messages to which this transaction has added one; return those messages.

    Messages are locked in the order of their ids, as by every statement that changes several.
    Source: indexes whatsapp_id, messages_pkey, message_status_events_pkey.
    """
    params = {
        "salon_ids": text_array(status.salon_id for status in statuses),
        "whatsapp_ids": text_array(status.whatsapp_id for status in statuses),
    }
    return Statement(_FOLD_STATUSES, params, written_messages)


_FOLD_STATUSES = f"""
    UPDATE messages AS m SET recorded_cost_micros = {RECORDED_COST[0]}, recorded_currency_code = {RECORDED_COST[1]},
        ({FOLDED}) = ({folded_status("m.salon_id", "m.whatsapp_id", *RECORDED_COST, "m.details")})
    FROM (
        SELECT salon_id AS of_salon, message_id AS of_message
        FROM unnest(%(salon_ids)s::text[], %(whatsapp_ids)s::text[]) AS given (salon_id, whatsapp_id)
        JOIN messages AS sent USING (salon_id, whatsapp_id)
        WHERE sent.direction = 'OUTBOUND' AND EXISTS (
            SELECT FROM message_status_events AS e
            WHERE e.salon_id = sent.salon_id AND e.whatsapp_id = sent.whatsapp_id
                AND e.xmin = pg_current_xact_id()::xid
        )
        ORDER BY message_id FOR NO KEY UPDATE OF sent
    ) AS named
    WHERE m.salon_id = of_salon AND m.message_id = of_message
    RETURNING {MESSAGE}"""


async def status_by_whatsapp_id(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> Message:
    """Return the folded status of a message that is not recorded yet.

    Source: index message_status_events_pkey.
    """
    query = f"""
        SELECT %(salon_id)s AS salon_id, %(whatsapp_id)s AS whatsapp_id, 'MESSAGE_STATUS_' || status AS status,
            error_code, error_title, pricing_category, billable, cost_micros, currency_code, conversation_origin,
            details AS fields
        FROM ({folded_status("%(salon_id)s", "%(whatsapp_id)s", "0", "NULL", "NULL::jsonb")}) AS folded"""
    return await fetch_returned(conn, Message, query, {"salon_id": salon_id, "whatsapp_id": whatsapp_id})
