"""The reads of the predecessor's tables: its own statements, and the RPC that replaces them."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

import psycopg
from google.protobuf.message import Message
from psycopg.rows import dict_row

from parlor.booking.v1 import booking_pb2 as booking
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.stats.v1 import stats_pb2 as stats

SALON = "salon-123"  # the largest
SALONS = [f"salon-{123 + rank}" for rank in range(20)]
MONTH, WEEK = timedelta(days=31), timedelta(days=7)
FIRST = datetime(2024, 11, 1, tzinfo=UTC)
REQUESTS = 256  # different ones of each read, at most
BOOKINGS = "SELECT * FROM bookings WHERE salon_id = %(salon_id)s AND {} ORDER BY start_ts LIMIT 50"
MESSAGES = "SELECT * FROM messages WHERE {} ORDER BY created_at DESC LIMIT {}"
VALUE = "SELECT {0} FROM {1} WHERE salon_id = %(salon_id)s AND {2} >= %(start_time)s AND {2} < %(end_time)s"
COST = "coalesce(sum(cost_micros), 0)"


class Request(NamedTuple):
    """One read: the RPC's request, and the parameters of the predecessor's statements."""

    message: Message
    params: dict[str, Any]


class Case:
    """A read with its different requests.

    `statements` are the predecessor's, sent in parallel. `index` is the one that the predecessor's report adds for
    this read; "before" lacks it.
    """

    def __init__(
        self, key: str, kind: Any, fields: Iterable[dict[str, Any]], *statements: str, index: str = ""
    ) -> None:
        """Make requests of a kind; `fields` are their fields and the statements' parameters."""
        self.key, self.statements, self.index = key, statements, index
        known = kind.DESCRIPTOR.fields_by_name
        self.requests = [
            Request(kind(**{name: value for name, value in each.items() if name in known}), each)
            for each in islice(fields, REQUESTS)
        ]
        self.service: str = kind.DESCRIPTOR.full_name.split(".")[1]
        self.method: str = kind.DESCRIPTOR.name.removesuffix("Request")


def cases(database_url: str) -> list[Case]:
    """Return every read of the predecessor's tables, with requests that fit the sample data."""
    with psycopg.connect(database_url) as conn:
        return [*_bookings(conn), *_messages(conn), *_stats(), *_salons(conn)]


def _bookings(conn: psycopg.Connection) -> Iterator[Case]:
    kind: Any = booking.ListBookingsRequest
    in_week = BOOKINGS.format("start_ts >= %(start_time)s AND start_ts < %(end_time)s")
    yield Case("salon_bookings", kind, _periods(WEEK), in_week, index="idx_bookings_salon_start")

    status = {"salon_id": SALON, "status": booking.BOOKING_STATUS_CONFIRMED}
    fields = [status | {"end_time": period["end_time"]} for period in _periods(timedelta(days=120))]
    confirmed = BOOKINGS.format("status = 'CONFIRMED' AND start_ts < %(end_time)s")
    yield Case("confirmed_bookings", kind, fields, confirmed, index="idx_bookings_salon_status_start")

    phones = _of_salon(conn, "SELECT DISTINCT salon_id, customer_phone FROM bookings WHERE salon_id = %s ORDER BY 2")
    of_customer = BOOKINGS.format("customer_phone = %(customer_phone)s")
    yield Case("customer_bookings", kind, phones, of_customer, index="idx_bookings_customer_salon")

    days = [
        "SELECT status, count(*) FROM bookings WHERE salon_id = %(salon_id)s"
        f" AND created_at >= %(start_time)s + interval '{day} days'"
        f" AND created_at < %(start_time)s + interval '{day + 1} days' GROUP BY status"
        for day in range(7)
    ]
    yield Case("daily_bookings", stats.ListBookingStatsRequest, _periods(WEEK), *days, index="idx_bookings_created")

    codes = _of_salon(conn, "SELECT salon_id, booking_code FROM bookings WHERE salon_id = %s ORDER BY created_at DESC")
    by_code = "SELECT * FROM bookings WHERE booking_code = %(booking_code)s AND salon_id = %(salon_id)s"
    yield Case("booking_by_code", booking.GetBookingByCodeRequest, codes, by_code)


def _messages(conn: psycopg.Connection) -> Iterator[Case]:
    kind: Any = messaging.ListMessagesRequest
    query = "SELECT salon_id, {} FROM conversations WHERE salon_id = %s ORDER BY started_at"

    pages = ({"salon_id": name, "page_size": size} for size in range(44, 57) for name in SALONS)
    of_salon = MESSAGES.format("salon_id = %(salon_id)s", "%(page_size)s")
    yield Case("salon_messages", kind, pages, of_salon, index="idx_messages_salon_created")

    phones = _of_salon(conn, query.format("phone_number"))
    of_phone = MESSAGES.format("phone_number = %(phone_number)s AND salon_id = %(salon_id)s", 50)
    yield Case("customer_messages", kind, phones, of_phone, index="idx_messages_phone_salon")

    ids = _of_salon(conn, query.format("conversation_id::text"))
    in_conversation = MESSAGES.format("conversation_id = %(conversation_id)s", 50)
    yield Case("conversation_messages", kind, ids, in_conversation, index="idx_messages_conversation_created")

    values = [
        f"{VALUE.format(value, 'messages', 'created_at')} AND direction = '{direction}'"
        for value in ("count(*)", COST)
        for direction in ("INBOUND", "OUTBOUND")
    ]
    kind, index = stats.GetMessageDirectionStatsRequest, "idx_messages_direction_salon"
    yield Case("direction_statistics", kind, _periods(MONTH), *values, index=index)

    contexts = _of_salon(conn, query.format("phone_number, conversation_id::text AS id"))
    conversation = "SELECT * FROM conversations WHERE salon_id = %(salon_id)s AND phone_number = %(phone_number)s"
    newest = MESSAGES.format("conversation_id = %(id)s", 10)
    yield Case("conversation_context", messaging.GetConversationRequest, contexts, conversation, newest)


def _stats() -> Iterator[Case]:
    """Yield the statistics of a month, for which the predecessor sends one statement per value."""
    values = [
        VALUE.format("count(*)", "bookings", "start_ts"),
        VALUE.format("count(*)", "messages", "created_at"),
        VALUE.format("count(*)", "conversations", "started_at"),
        VALUE.format(COST, "messages", "created_at"),
    ]
    yield Case("salon_stats", stats.GetSalonStatsRequest, _periods(MONTH), *values)

    figures = ("count(*)", "sum(prompt_tokens)", "sum(completion_tokens)", "sum(cost_micros)", "avg(latency_ms)")
    values = [f"{VALUE.format(f'model, {each}', 'ai_messages', 'created_at')} GROUP BY model" for each in figures]
    yield Case("ai_analytics", stats.GetAiAnalyticsRequest, _periods(MONTH), *values)


def _salons(conn: psycopg.Connection) -> Iterator[Case]:
    statement = "SELECT * FROM salons WHERE {0} = %({0})s"
    rows = conn.execute("SELECT salon_id, phone_number_id FROM salons ORDER BY salon_id").fetchall()
    phones, ids = ([{name: row[place]} for row in rows] for place, name in ((1, "phone_number_id"), (0, "salon_id")))
    kind = booking.GetSalonByPhoneNumberIdRequest
    yield Case("salon_by_phone", kind, phones, statement.format("phone_number_id"))
    yield Case("salon_by_id", booking.GetSalonRequest, ids, statement.format("salon_id"))


def _of_salon(conn: psycopg.Connection, query: str) -> list[dict[str, Any]]:
    """Return rows of the largest salon."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(f"{query} LIMIT {REQUESTS}".encode(), [SALON]).fetchall()


def _periods(length: timedelta) -> Iterator[dict[str, Any]]:
    """Yield periods of the largest salon, each two hours later than the one before."""
    for number in range(REQUESTS):
        start = FIRST + timedelta(hours=2 * number)
        yield {"salon_id": SALON, "start_time": start, "end_time": start + length}
