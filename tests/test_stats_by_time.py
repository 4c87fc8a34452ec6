"""Statistics by day, week and month of the salon's wall clock, also across clock changes."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.stats.v1 import stats_pb2 as pb
from tests.stack import PHONE, SALON, Stack, booking_request, rows, salon

HALF_HOUR = timedelta(minutes=30)
STARTS = {
    pb.TIME_BUCKET_DAY: lambda day: day,
    pb.TIME_BUCKET_WEEK: lambda day: day - timedelta(days=day.weekday()),
    pb.TIME_BUCKET_MONTH: lambda day: day.replace(day=1),
}


def fill(stack: Stack, start: datetime, end: datetime) -> list[datetime]:
    """Create a booking and start a conversation every half hour; return the times."""
    moments = [start + number * HALF_HOUR for number in range((end - start) // HALF_HOUR)]
    with psycopg.connect(stack.database_url) as conn:
        booking = (
            "INSERT INTO bookings (salon_id, booking_code, customer_phone, start_ts, end_ts, status, created_at)"
            " VALUES (%s, %s, %s, 'epoch', 'tomorrow', 'PENDING', %s)"
        )
        conversation = "INSERT INTO conversations (salon_id, phone_number, started_at) VALUES (%s, %s, %s)"
        numbered = list(enumerate(moments))
        conn.cursor().executemany(booking, [(SALON, f"C{number}", PHONE, moment) for number, moment in numbered])
        conn.cursor().executemany(conversation, [(SALON, f"+{number}", moment) for number, moment in numbered])
    return moments


def expected(moments: list[datetime], end: datetime, zone: str, bucket: Any) -> list[tuple[datetime, datetime, int]]:
    """Return start, end and count of each bucket, computed from the wall time of each half hour."""
    found: dict[date, list[datetime]] = {}
    for moment in moments:
        found.setdefault(STARTS[bucket](moment.astimezone(ZoneInfo(zone)).date()), []).append(moment)
    firsts = [group[0] for group in found.values()]
    return list(zip(firsts, [*firsts[1:], end], map(len, found.values()), strict=True))


def times(start: datetime, end: datetime) -> dict[str, Any]:
    period = {"start_time": Timestamp(), "end_time": Timestamp()}
    for name, moment in (("start_time", start), ("end_time", end)):
        period[name].FromDatetime(moment)
    return {"salon_id": SALON, **period}


def span(row: Any) -> tuple[datetime, datetime]:
    return row.start_time.ToDatetime(UTC), row.end_time.ToDatetime(UTC)


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Europe/Berlin", date(2026, 3, 29)),  # 23 h
        ("Europe/Berlin", date(2026, 10, 25)),  # 25 h
        ("Atlantic/Azores", date(2026, 3, 29)),  # no midnight
        ("Atlantic/Azores", date(2026, 10, 25)),  # midnight twice
        ("Australia/Lord_Howe", date(2026, 10, 4)),  # half an hour
        ("Asia/Kathmandu", date(2026, 7, 1)),  # 5:45 h before UTC
    ],
)
async def test_buckets_are_days_weeks_and_months_in_the_salons_time_zone(stack: Stack, zone: str, day: date) -> None:
    await salon(stack, time_zone=zone)
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    moments = fill(stack, noon - timedelta(days=9), end := noon + timedelta(days=9))
    period = times(moments[0], end)
    for bucket in STARTS:
        wanted = expected(moments, end, zone, bucket)
        bookings = await stack.stats.ListBookingStats(pb.ListBookingStatsRequest(bucket=bucket, **period))
        assert [(*span(row), row.bookings) for row in bookings.booking_stats] == wanted
        started = await stack.stats.ListConversationStats(pb.ListConversationStatsRequest(bucket=bucket, **period))
        assert [(*span(row), row.conversations) for row in started.conversation_stats] == wanted


async def test_days_with_clock_changes_have_23_and_25_hours(stack: Stack) -> None:
    await salon(stack)
    berlin = ZoneInfo("Europe/Berlin")
    for first, hours in ((datetime(2026, 3, 28), [24, 23, 24]), (datetime(2026, 10, 24), [24, 25, 24])):
        period = times(first.replace(tzinfo=berlin), (first + timedelta(days=3)).replace(tzinfo=berlin))
        reply = await stack.stats.ListBookingStats(pb.ListBookingStatsRequest(**period))
        lengths = [end - start for start, end in map(span, reply.booking_stats)]
        assert lengths == [timedelta(hours=length) for length in hours]
        assert [row.bookings for row in reply.booking_stats] == [0, 0, 0]


async def test_buckets_cover_exactly_the_period(stack: Stack) -> None:
    await salon(stack, time_zone="UTC")
    start, end = datetime(2026, 1, 31, 23, 30, tzinfo=UTC), datetime(2026, 3, 1, 0, 30, tzinfo=UTC)
    fill(stack, start - 2 * HALF_HOUR, end + 2 * HALF_HOUR)
    request = pb.ListBookingStatsRequest(bucket=pb.TIME_BUCKET_MONTH, **times(start, end))
    found = [(*span(row), row.bookings) for row in (await stack.stats.ListBookingStats(request)).booking_stats]
    february, march = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    assert found == [(start, february, 1), (february, march, 28 * 48), (march, end, 1)]


async def test_bookings_are_counted_by_current_status_and_creation_time(stack: Stack) -> None:
    await salon(stack)
    words = ("pending", "confirmed", "cancelled", "completed", "no_show")
    for number, word in enumerate(words, 1):
        for _ in range(number):
            booking = await stack.booking.CreateBooking(booking_request(1000))
            change = f"UPDATE bookings SET status = '{word.upper()}' WHERE booking_code = '{booking.booking_code}'"
            rows(stack.database_url, f"{change} RETURNING 1")
    now = booking.create_time.ToDatetime(UTC)
    request = pb.ListBookingStatsRequest(**times(now - timedelta(seconds=60), now + timedelta(microseconds=1)))
    days = (await stack.stats.ListBookingStats(request)).booking_stats
    assert sum(day.bookings for day in days) == 15
    assert [sum(getattr(day, word) for day in days) for word in words] == [1, 2, 3, 4, 5]


async def test_ten_years_of_days_fit_one_reply(stack: Stack) -> None:
    await salon(stack)
    start = datetime(1970, 1, 1, tzinfo=UTC)
    request = pb.ListConversationStatsRequest(**times(start, start + timedelta(days=3660)))
    reply = await stack.stats.ListConversationStats(request)
    assert len(reply.conversation_stats) == 3661
