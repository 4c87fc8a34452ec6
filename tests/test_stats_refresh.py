"""Statistics under refresh-ahead: no acknowledged booking is missing."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2
from parlor.stats.v1 import stats_pb2 as pb
from tests.stack import SALON, Fields, Stack, booking_request, cached, message_request, running, salon, warm

AT_ONCE = {"stats": 1e-6, "aiAnalytics": 1e-6}  # any entry older than a millisecond is due
DAY = timedelta(days=1)
TIMES = ("start_time", "end_time")


def period(start: datetime, end: datetime) -> dict[str, Any]:
    """Return the fields of a period of the salon."""
    times = {"start_time": Timestamp(), "end_time": Timestamp()}
    times["start_time"].FromDatetime(start)
    times["end_time"].FromDatetime(end)
    return {"salon_id": SALON, **times}


async def counted(stack: Stack, today: datetime) -> tuple[int, int, int]:
    """Return bookings in the next two hours, and of those created today the confirmed ones and all."""
    soon = pb.GetSalonStatsRequest(**period(today, today + DAY / 12))
    created = pb.ListBookingStatsRequest(**period(today - DAY, today + DAY))
    stats, by_day = await asyncio.gather(stack.stats.GetSalonStats(soon), stack.stats.ListBookingStats(created))
    days = by_day.booking_stats
    return stats.bookings, sum(day.confirmed for day in days), sum(day.bookings for day in days)


async def test_no_acknowledged_booking_is_missing(database_url: str, redis_url: str) -> None:
    async with running(database_url, redis_url, cache={"refresh": AT_ONCE}) as stack:
        await salon(stack)
        today, over = datetime.now(UTC), asyncio.Event()
        start, counters = int(today.timestamp()) + 60, stack.servers["stats"].cache.counters

        async def dashboard() -> None:
            while not over.is_set():
                await counted(stack, today)

        async def refreshing() -> None:
            """Wait until an entry is being refreshed."""
            before = counters.refreshes
            async with asyncio.timeout(10):
                while counters.refreshes == before:
                    await counted(stack, today)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(dashboard())
            for number in range(1, 11):
                await refreshing()
                booking = await stack.booking.CreateBooking(booking_request(start))
                assert await counted(stack, today) == (1, number - 1, number)
                named: Fields = {"salon_id": SALON, "booking_code": booking.booking_code}
                await refreshing()
                await stack.booking.UpdateBookingStatus(
                    booking_pb2.UpdateBookingStatusRequest(**named, status=booking_pb2.BOOKING_STATUS_CONFIRMED)
                )
                assert await counted(stack, today) == (1, number, number)
                later: Fields = {name: Timestamp(seconds=start + 86_400 + n) for n, name in enumerate(TIMES)}
                await refreshing()
                await stack.booking.RescheduleBooking(
                    booking_pb2.RescheduleBookingRequest(**named, **later, ignore_rules=True)
                )
                assert await counted(stack, today) == (0, number, number)
            over.set()


async def test_messages_are_counted_before_the_ttl_ends_and_no_caller_waits_for_them(
    database_url: str, redis_url: str
) -> None:
    async with running(database_url, redis_url, cache={"refresh": AT_ONCE}) as stack:
        await salon(stack)
        now = datetime.now(UTC)
        request = pb.GetSalonStatsRequest(**period(now - DAY, now + DAY))
        await warm(stack.stats.GetSalonStats, request)
        await stack.servers["stats"].cache.settle()
        await stack.messaging.RecordMessage(message_request())
        stats, source = await cached(stack.stats.GetSalonStats(request))
        assert (stats.messages, source) == (0, "hit")
        async with asyncio.timeout(10):
            while not stats.messages:
                stats, source = await cached(stack.stats.GetSalonStats(request))
                assert source == "hit"
