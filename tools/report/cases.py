"""The reads of the seed's tables: as its predecessor did them, and as an RPC."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as booking
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.stats.v1 import stats_pb2 as stats

SALON = "salon-123"  # the biggest
SALONS = [f"salon-{123 + rank}" for rank in range(20)]
MONTH = timedelta(days=31)
WEEK = timedelta(days=7)
FIRST = datetime(2024, 11, 1, tzinfo=UTC)
ASKS = 256
PAGE = 50


class Ask(NamedTuple):
    """One read: the RPC's request, and the parameters of the predecessor's statements."""

    request: Message
    params: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A read with up to ASKS different asks.

    `statements` are the predecessor's, sent side by side; `index` is the one that the seed's table names for it, which
    "before" lacks.
    """

    key: str
    service: str
    method: str
    statements: tuple[str, ...]
    asks: Sequence[Ask]
    index: str = ""

    @property
    def path(self) -> str:
        """The method as gRPC names it."""
        return f"/parlor.{self.service}.v1.{self.service.capitalize()}Service/{self.method}"


def cases(database_url: str) -> list[Case]:
    """Return every read, asked of the seed's data set."""
    with psycopg.connect(database_url) as conn:
        return [*_bookings(conn), *_messages(conn), *_stats(), *_salons(conn)]


def _bookings(conn: psycopg.Connection) -> Iterator[Case]:
    """Yield what the seed calls booking queries."""
    listed = "SELECT * FROM bookings WHERE salon_id = %(salon_id)s{} ORDER BY start_ts LIMIT 50"
    weeks = [
        Ask(booking.ListBookingsRequest(salon_id=SALON, **times), {"salon_id": SALON, "start": start, "end": end})
        for start, end, times in _periods(WEEK)
    ]
    in_week = listed.format(" AND start_ts >= %(start)s AND start_ts < %(end)s")
    yield Case("salon_bookings", "booking", "ListBookings", (in_week,), weeks, "idx_bookings_salon_start")

    confirmed = [
        Ask(
            booking.ListBookingsRequest(
                salon_id=SALON, status=booking.BOOKING_STATUS_CONFIRMED, end_time=times["end_time"]
            ),
            {"salon_id": SALON, "end": end},
        )
        for _, end, times in _periods(timedelta(days=120))
    ]
    by_status = listed.format(" AND status = 'CONFIRMED' AND start_ts < %(end)s")
    yield Case(
        "confirmed_bookings", "booking", "ListBookings", (by_status,), confirmed, "idx_bookings_salon_status_start"
    )

    customers = [
        Ask(
            booking.ListBookingsRequest(salon_id=SALON, customer_phone=phone),
            {"salon_id": SALON, "customer_phone": phone},
        )
        for (phone,) in _rows(conn, "SELECT DISTINCT customer_phone FROM bookings WHERE salon_id = %s ORDER BY 1")
    ]
    of_customer = listed.format(" AND customer_phone = %(customer_phone)s")
    yield Case("customer_bookings", "booking", "ListBookings", (of_customer,), customers, "idx_bookings_customer_salon")

    of_day = (
        "SELECT status, count(*) FROM bookings WHERE salon_id = %(salon_id)s"
        " AND created_at >= %(start)s + interval '{} days' AND created_at < %(start)s + interval '{} days'"
        " GROUP BY status"
    )
    days = tuple(of_day.format(day, day + 1) for day in range(7))
    asks = _of_periods(stats.ListBookingStatsRequest, WEEK)
    yield Case("daily_bookings", "stats", "ListBookingStats", days, asks, "idx_bookings_created")

    codes = [
        Ask(
            booking.GetBookingByCodeRequest(salon_id=SALON, booking_code=code),
            {"salon_id": SALON, "booking_code": code},
        )
        for (code,) in _rows(conn, "SELECT booking_code FROM bookings WHERE salon_id = %s ORDER BY created_at DESC")
    ]
    by_code = "SELECT * FROM bookings WHERE booking_code = %(booking_code)s AND salon_id = %(salon_id)s"
    yield Case("booking_by_code", "booking", "GetBookingByCode", (by_code,), codes)


def _messages(conn: psycopg.Connection) -> Iterator[Case]:
    """Yield what the seed calls message queries, and a conversation with its messages."""
    listed = "SELECT * FROM messages WHERE {} ORDER BY created_at DESC LIMIT %(limit)s"
    conversations = _rows(
        conn, "SELECT conversation_id::text, phone_number FROM conversations WHERE salon_id = %s ORDER BY started_at"
    )

    pages = [(salon_id, size) for size in range(PAGE - 6, PAGE + 7) for salon_id in SALONS][:ASKS]
    recent = [
        Ask(messaging.ListMessagesRequest(salon_id=salon_id, page_size=size), {"salon_id": salon_id, "limit": size})
        for salon_id, size in pages
    ]
    of_salon = listed.format("salon_id = %(salon_id)s")
    yield Case("salon_messages", "messaging", "ListMessages", (of_salon,), recent, "idx_messages_salon_created")

    by_phone = [
        Ask(
            messaging.ListMessagesRequest(salon_id=SALON, phone_number=phone),
            {"salon_id": SALON, "phone_number": phone, "limit": PAGE},
        )
        for _, phone in conversations
    ]
    of_phone = listed.format("phone_number = %(phone_number)s AND salon_id = %(salon_id)s")
    yield Case("customer_messages", "messaging", "ListMessages", (of_phone,), by_phone, "idx_messages_phone_salon")

    by_id = [
        Ask(
            messaging.ListMessagesRequest(salon_id=SALON, conversation_id=conversation_id),
            {"salon_id": SALON, "conversation_id": conversation_id, "limit": PAGE},
        )
        for conversation_id, _ in conversations
    ]
    of_conversation = listed.format("conversation_id = %(conversation_id)s")
    yield Case(
        "conversation_messages",
        "messaging",
        "ListMessages",
        (of_conversation,),
        by_id,
        "idx_messages_conversation_created",
    )

    value = (
        "SELECT {} FROM messages WHERE salon_id = %(salon_id)s AND direction = '{}'"
        " AND created_at >= %(start)s AND created_at < %(end)s"
    )
    values = tuple(
        value.format(figure, direction)
        for figure in ("count(*)", "coalesce(sum(cost_micros), 0)")
        for direction in ("INBOUND", "OUTBOUND")
    )
    asks = _of_periods(stats.GetMessageDirectionStatsRequest, MONTH)
    yield Case(
        "direction_statistics", "stats", "GetMessageDirectionStats", values, asks, "idx_messages_direction_salon"
    )

    contexts = [
        Ask(
            messaging.GetConversationRequest(salon_id=SALON, phone_number=phone),
            {"salon_id": SALON, "phone_number": phone, "conversation_id": conversation_id, "limit": 10},
        )
        for conversation_id, phone in conversations
    ]
    conversation = "SELECT * FROM conversations WHERE salon_id = %(salon_id)s AND phone_number = %(phone_number)s"
    yield Case("conversation_context", "messaging", "GetConversation", (conversation, of_conversation), contexts)


def _stats() -> Iterator[Case]:
    """Yield what the seed calls stats queries: of a month, one statement a value."""
    of_period = "SELECT {} FROM {} WHERE salon_id = %(salon_id)s AND {} >= %(start)s AND {} < %(end)s"
    counts = tuple(
        of_period.format(figure, table, time, time)
        for figure, table, time in (
            ("count(*)", "bookings", "start_ts"),
            ("count(*)", "messages", "created_at"),
            ("count(*)", "conversations", "started_at"),
            ("coalesce(sum(cost_micros), 0)", "messages", "created_at"),
        )
    )
    yield Case("salon_stats", "stats", "GetSalonStats", counts, _of_periods(stats.GetSalonStatsRequest, MONTH))

    figures = ("count(*)", "sum(prompt_tokens)", "sum(completion_tokens)", "sum(cost_micros)", "avg(latency_ms)")
    by_model = of_period.format("model, {}", "ai_messages", "created_at", "created_at") + " GROUP BY model"
    values = tuple(by_model.format(figure) for figure in figures)
    yield Case("ai_analytics", "stats", "GetAiAnalytics", values, _of_periods(stats.GetAiAnalyticsRequest, MONTH))


def _salons(conn: psycopg.Connection) -> Iterator[Case]:
    """Yield the look-ups of salons."""
    names = conn.execute("SELECT salon_id, phone_number_id FROM salons ORDER BY salon_id").fetchall()
    by_phone = [
        Ask(booking.GetSalonByPhoneNumberIdRequest(phone_number_id=name), {"phone_number_id": name})
        for _, name in names
    ]
    statement = "SELECT * FROM salons WHERE phone_number_id = %(phone_number_id)s"
    yield Case("salon_by_phone", "booking", "GetSalonByPhoneNumberId", (statement,), by_phone)
    by_id = [Ask(booking.GetSalonRequest(salon_id=name), {"salon_id": name}) for name, _ in names]
    yield Case("salon_by_id", "booking", "GetSalon", ("SELECT * FROM salons WHERE salon_id = %(salon_id)s",), by_id)


def _rows(conn: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    """Return as many rows of the biggest salon as there are asks."""
    return conn.execute(f"{query} LIMIT {ASKS}".encode(), [SALON]).fetchall()


def _periods(length: timedelta) -> Iterable[tuple[datetime, datetime, dict[str, Any]]]:
    """Yield as many periods as there are asks, each from two hours later; also as the fields of a request."""
    for number in range(ASKS):
        start = FIRST + timedelta(hours=2 * number)
        end = start + length
        times = {"start_time": Timestamp(), "end_time": Timestamp()}
        times["start_time"].FromDatetime(start)
        times["end_time"].FromDatetime(end)
        yield start, end, times


def _of_periods(kind: Any, length: timedelta) -> list[Ask]:
    """Return asks for figures of the biggest salon."""
    return [
        Ask(kind(salon_id=SALON, **times), {"salon_id": SALON, "start": start, "end": end})
        for start, end, times in _periods(length)
    ]
