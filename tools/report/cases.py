"""The reads of the predecessor's tables: its own statements, and the RPC that replaces them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

import psycopg
from google.protobuf.message import Message

from parlor.booking.v1 import booking_pb2 as booking
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.stats.v1 import stats_pb2 as stats

SALON = "salon-123"  # the largest
SALONS = [f"salon-{123 + rank}" for rank in range(20)]
MONTH = timedelta(days=31)
WEEK = timedelta(days=7)
FIRST = datetime(2024, 11, 1, tzinfo=UTC)
REQUESTS = 256  # different ones of each read, at most
IN_PERIOD = "salon_id = %(salon_id)s AND {0} >= %(start_time)s AND {0} < %(end_time)s"


class Request(NamedTuple):
    """One read: the RPC's request, and the parameters of the predecessor's statements."""

    message: Message
    params: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A read with its different requests.

    `statements` are the predecessor's, sent in parallel. `index` is the one that the predecessor's report adds for
    this read; "before" lacks it.
    """

    key: str
    service: str
    method: str
    statements: tuple[str, ...]
    requests: Sequence[Request]
    index: str = ""

    @property
    def path(self) -> str:
        """The method as gRPC names it."""
        return f"/parlor.{self.service}.v1.{self.service.capitalize()}Service/{self.method}"


def cases(database_url: str) -> list[Case]:
    """Return every read of the predecessor's tables, with requests that fit the sample data."""
    with psycopg.connect(database_url) as conn:
        return [*_bookings(conn), *_messages(conn), *_stats(), *_salons(conn)]


def _bookings(conn: psycopg.Connection) -> Iterator[Case]:
    listed = "SELECT * FROM bookings WHERE {} ORDER BY start_ts LIMIT 50"
    in_week = (listed.format(IN_PERIOD.format("start_ts")),)
    weeks = _requests(booking.ListBookingsRequest, _periods(WEEK))
    yield Case("salon_bookings", "booking", "ListBookings", in_week, weeks, "idx_bookings_salon_start")

    by_status = (listed.format("salon_id = %(salon_id)s AND status = 'CONFIRMED' AND start_ts < %(end_time)s"),)
    confirmed = _requests(
        booking.ListBookingsRequest,
        (
            {"salon_id": SALON, "status": booking.BOOKING_STATUS_CONFIRMED, "end_time": period["end_time"]}
            for period in _periods(timedelta(days=120))
        ),
    )
    index = "idx_bookings_salon_status_start"
    yield Case("confirmed_bookings", "booking", "ListBookings", by_status, confirmed, index)

    of_customer = (listed.format("salon_id = %(salon_id)s AND customer_phone = %(customer_phone)s"),)
    phones = _column(conn, "SELECT DISTINCT customer_phone FROM bookings WHERE salon_id = %s ORDER BY 1")
    customers = _requests(booking.ListBookingsRequest, ({"salon_id": SALON, "customer_phone": one} for one in phones))
    yield Case("customer_bookings", "booking", "ListBookings", of_customer, customers, "idx_bookings_customer_salon")

    days = tuple(
        "SELECT status, count(*) FROM bookings WHERE salon_id = %(salon_id)s"
        f" AND created_at >= %(start_time)s + interval '{day} days'"
        f" AND created_at < %(start_time)s + interval '{day + 1} days' GROUP BY status"
        for day in range(7)
    )
    weeks = _requests(stats.ListBookingStatsRequest, _periods(WEEK))
    yield Case("daily_bookings", "stats", "ListBookingStats", days, weeks, "idx_bookings_created")

    by_code = ("SELECT * FROM bookings WHERE booking_code = %(booking_code)s AND salon_id = %(salon_id)s",)
    codes = _column(conn, "SELECT booking_code FROM bookings WHERE salon_id = %s ORDER BY created_at DESC")
    bookings = _requests(booking.GetBookingByCodeRequest, ({"salon_id": SALON, "booking_code": one} for one in codes))
    yield Case("booking_by_code", "booking", "GetBookingByCode", by_code, bookings)


def _messages(conn: psycopg.Connection) -> Iterator[Case]:
    listed = "SELECT * FROM messages WHERE {} ORDER BY created_at DESC LIMIT {}"
    request = messaging.ListMessagesRequest
    query = "SELECT {} FROM conversations WHERE salon_id = %s ORDER BY started_at"
    ids, phones = (_column(conn, query.format(column)) for column in ("conversation_id::text", "phone_number"))

    of_salon = (listed.format("salon_id = %(salon_id)s", "%(page_size)s"),)
    pages = _requests(request, ({"salon_id": name, "page_size": size} for size in range(44, 57) for name in SALONS))
    yield Case("salon_messages", "messaging", "ListMessages", of_salon, pages, "idx_messages_salon_created")

    of_phone = (listed.format("phone_number = %(phone_number)s AND salon_id = %(salon_id)s", 50),)
    by_phone = _requests(request, ({"salon_id": SALON, "phone_number": phone} for phone in phones))
    yield Case("customer_messages", "messaging", "ListMessages", of_phone, by_phone, "idx_messages_phone_salon")

    in_conversation = (listed.format("conversation_id = %(conversation_id)s", 50),)
    by_id = _requests(request, ({"salon_id": SALON, "conversation_id": one} for one in ids))
    index = "idx_messages_conversation_created"
    yield Case("conversation_messages", "messaging", "ListMessages", in_conversation, by_id, index)

    values = tuple(
        f"SELECT {value} FROM messages WHERE direction = '{direction}' AND {IN_PERIOD.format('created_at')}"
        for value in ("count(*)", "coalesce(sum(cost_micros), 0)")
        for direction in ("INBOUND", "OUTBOUND")
    )
    months = _requests(stats.GetMessageDirectionStatsRequest, _periods(MONTH))
    index = "idx_messages_direction_salon"
    yield Case("direction_statistics", "stats", "GetMessageDirectionStats", values, months, index)

    conversation = (
        "SELECT * FROM conversations WHERE salon_id = %(salon_id)s AND phone_number = %(phone_number)s",
        listed.format("conversation_id = %(conversation_id)s", 10),
    )
    contexts = [
        Request(
            messaging.GetConversationRequest(salon_id=SALON, phone_number=phone),
            {"salon_id": SALON, "phone_number": phone, "conversation_id": conversation_id},
        )
        for conversation_id, phone in zip(ids, phones, strict=True)
    ]
    yield Case("conversation_context", "messaging", "GetConversation", conversation, contexts)


def _stats() -> Iterator[Case]:
    """Yield the statistics of a month, for which the predecessor sends one statement per value."""
    counts = tuple(
        f"SELECT {value} FROM {table} WHERE {IN_PERIOD.format(time)}"
        for value, table, time in (
            ("count(*)", "bookings", "start_ts"),
            ("count(*)", "messages", "created_at"),
            ("count(*)", "conversations", "started_at"),
            ("coalesce(sum(cost_micros), 0)", "messages", "created_at"),
        )
    )
    months = _requests(stats.GetSalonStatsRequest, _periods(MONTH))
    yield Case("salon_stats", "stats", "GetSalonStats", counts, months)

    values = tuple(
        f"SELECT model, {value} FROM ai_messages WHERE {IN_PERIOD.format('created_at')} GROUP BY model"
        for value in ("count(*)", "sum(prompt_tokens)", "sum(completion_tokens)", "sum(cost_micros)", "avg(latency_ms)")
    )
    months = _requests(stats.GetAiAnalyticsRequest, _periods(MONTH))
    yield Case("ai_analytics", "stats", "GetAiAnalytics", values, months)


def _salons(conn: psycopg.Connection) -> Iterator[Case]:
    statement = "SELECT * FROM salons WHERE {0} = %({0})s"
    names = [name for (name,) in conn.execute("SELECT phone_number_id FROM salons ORDER BY salon_id")]
    by_phone = _requests(booking.GetSalonByPhoneNumberIdRequest, ({"phone_number_id": name} for name in names))
    phone = (statement.format("phone_number_id"),)
    yield Case("salon_by_phone", "booking", "GetSalonByPhoneNumberId", phone, by_phone)
    by_id = _requests(booking.GetSalonRequest, ({"salon_id": name} for name in SALONS))
    yield Case("salon_by_id", "booking", "GetSalon", (statement.format("salon_id"),), by_id)


def _requests(kind: Any, fields: Iterable[dict[str, Any]]) -> list[Request]:
    """Return requests with these fields, which are the statements' parameters too."""
    return [Request(kind(**each), each) for each in islice(fields, REQUESTS)]


def _column(conn: psycopg.Connection, query: str) -> list[str]:
    """Return a column of rows of the largest salon."""
    return [value for (value,) in conn.execute(f"{query} LIMIT {REQUESTS}".encode(), [SALON])]


def _periods(length: timedelta) -> Iterator[dict[str, Any]]:
    """Yield periods of the largest salon, each two hours later than the one before."""
    for number in range(REQUESTS):
        start = FIRST + timedelta(hours=2 * number)
        yield {"salon_id": SALON, "start_time": start, "end_time": start + length}
