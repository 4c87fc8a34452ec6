"""With many concurrent writers no two blocking bookings overlap, and every refusal has its reason."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import grpc

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Fields, Stack, booking_request, deadlocks, read_failure, rows, salon

MIDNIGHT = 4_000_000_000 - 4_000_000_000 % 86_400
RESOURCES = [f"chair-{number}" for number in range(5)]
STATUSES = ("CONFIRMED", "CANCELLED", "COMPLETED", "NO_SHOW")
REASONS = {"SLOT_UNAVAILABLE", "INVALID_TRANSITION", "HOLD_EXPIRED"}
OVERLAPS = """
    SELECT a.booking_code, b.booking_code FROM bookings AS a JOIN bookings AS b USING (salon_id, resource_id)
    WHERE a.booking_id < b.booking_id AND tstzrange(a.start_ts, a.end_ts) && tstzrange(b.start_ts, b.end_ts)
        AND a.status IN ('PENDING', 'CONFIRMED') AND b.status IN ('PENDING', 'CONFIRMED')"""
EXPIRE = "UPDATE bookings SET hold_expires_at = now() WHERE status = 'PENDING' AND hold_expires_at > now() RETURNING 1"


class Crowd:
    """Callers that send random requests."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.booking = stack.booking
        self.random = random.Random(seed)
        self.known: dict[str, pb.Booking] = {}
        self.outcomes: Counter[str] = Counter()

    def call(self) -> Awaitable[pb.Booking]:
        """Return the next call."""
        start = MIDNIGHT + self.random.randrange(24) * 900
        time: Fields = {
            "start_time": {"seconds": start},
            "end_time": {"seconds": start + self.random.choice((900, 3600))},
        }
        resource: Fields = {"resource_id": self.random.choice(RESOURCES)}
        kind = self.random.randrange(3) if self.known else 0
        if kind == 0:
            hold: Fields = self.random.choice(
                ({}, {"hold_duration": {"seconds": 600}}, {"status": "BOOKING_STATUS_CONFIRMED"})
            )
            return self.booking.CreateBooking(booking_request(**time, **resource, **hold))
        code = self.random.choice(list(self.known))
        names: Fields = {"salon_id": SALON, "booking_code": code, "actor": "crowd"}
        if kind == 1:
            to: Fields = self.random.choice((time, resource, {**time, **resource}))
            return self.booking.RescheduleBooking(pb.RescheduleBookingRequest(**names, **to))
        status: Any = f"BOOKING_STATUS_{self.random.choice(STATUSES)}"
        return self.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, status=status))

    async def one(self, call: Awaitable[pb.Booking]) -> None:
        """Make a call and record its outcome."""
        try:
            booking = await call
        except grpc.aio.AioRpcError as error:
            self.outcomes[read_failure(error).reason] += 1
            return
        self.outcomes["OK"] += 1
        known = self.known.get(booking.booking_code)
        if known is None or known.revision < booking.revision:
            self.known[booking.booking_code] = booking

    async def check(self) -> None:
        """Check that each booking equals its last OK reply, or was canceled since as an expired hold."""
        for first in range(0, len(self.known), 100):
            codes = list(self.known)[first : first + 100]
            wanted = pb.BatchGetBookingsRequest(salon_id=SALON, booking_codes=codes)
            for now in (await self.booking.BatchGetBookings(wanted)).bookings:
                expected = self.known[now.booking_code]
                for one in (now, expected):
                    one.ClearField("hold_expire_time")  # which EXPIRE changes
                cancelled = (pb.BOOKING_STATUS_CANCELLED, expected.revision + 1)
                assert now == expected or (now.status, now.revision) == cancelled


async def test_no_two_bookings_overlap_after_ten_rounds_of_200_concurrent_calls(stack: Stack) -> None:
    await salon(stack)
    crowd = Crowd(stack, seed=3)
    for _ in range(10):
        await asyncio.gather(*(crowd.one(call) for call in [crowd.call() for _ in range(200)]))
        assert rows(stack.database_url, OVERLAPS) == []
        await crowd.check()
        rows(stack.database_url, EXPIRE)
    outcomes = crowd.outcomes
    assert set(outcomes) == {"OK", *REASONS}
    assert outcomes.total() == 2000
    # The client retries deadlocks, so the outcomes do not show them.
    assert deadlocks(stack) == 0
    kept = rows(stack.database_url, "SELECT count(*) FROM bookings WHERE status IN ('PENDING', 'CONFIRMED')")
    assert kept[0][0] > 0
    # Each revision of each booking has its event.
    assert rows(stack.database_url, "SELECT sum(revision) FROM bookings") == rows(
        stack.database_url, "SELECT count(*) FROM booking_events"
    )
