"""With many concurrent writers no two blocking bookings overlap, and every refusal has its reason.

ANY_ROUNDS and BUFFER_ROUNDS make two of the tests longer.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Fields, Stack, booking_request, deadlocks, read_failure, rows, salon

MIDNIGHT = 1_700_000_000 - 1_700_000_000 % 86_400
ANY_ROUNDS = int(os.environ.get("ANY_ROUNDS", "10"))  # 200 in a long run
BUFFER_ROUNDS = int(os.environ.get("BUFFER_ROUNDS", "200"))  # 1,000 in a long run
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
            return self.booking.RescheduleBooking(pb.RescheduleBookingRequest(**names, **to, ignore_rules=True))
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
        """Check that each booking is as its last OK reply had it, or has expired since."""
        for first in range(0, len(self.known), 100):
            codes = list(self.known)[first : first + 100]
            wanted = pb.BatchGetBookingsRequest(salon_id=SALON, booking_codes=codes)
            for now in (await self.booking.BatchGetBookings(wanted)).bookings:
                expected = self.known[now.booking_code]
                for one in (now, expected):
                    one.ClearField("hold_expire_time")  # which EXPIRE changes
                expired = (pb.BOOKING_STATUS_EXPIRED, expected.revision + 1)
                assert now == expected or (now.status, now.revision) == expired


@pytest.mark.patient
async def test_no_two_bookings_overlap_after_200_calls_at_once_ten_times(stack: Stack) -> None:
    await salon(stack, resources=RESOURCES)
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


ALWAYS: Fields = {
    "time_zone": "UTC",
    "opening_hours": [{"day_of_week": day, "open_time": {}, "close_time": {"hours": 24}} for day in range(1, 8)],
}
FUTURE = 4_000_000_000 - 4_000_000_000 % 86_400
CLOSE = """
    SELECT a.booking_code, b.booking_code FROM bookings AS a JOIN bookings AS b USING (salon_id, resource_id)
    WHERE a.start_ts < b.start_ts AND b.start_ts < a.end_ts + interval '900 s'
        AND a.status IN ('PENDING', 'CONFIRMED') AND b.status IN ('PENDING', 'CONFIRMED')"""


async def outcome(stack: Stack, request: pb.CreateBookingRequest) -> str:
    """Return the resource of a new booking, or the reason of its refusal."""
    try:
        return (await stack.booking.CreateBooking(request)).resource_id
    except grpc.aio.AioRpcError as error:
        return read_failure(error).reason


@pytest.mark.patient
@pytest.mark.parametrize("by_service", [False, True])
async def test_32_at_once_for_any_of_5_fill_each_of_them_once(stack: Stack, by_service: bool) -> None:
    await salon(stack, resources=[*RESOURCES, "chair-5", "chair-6"], **ALWAYS)
    names: Fields = {"salon_id": SALON, "service_id": "cut", "name": "Cut", "resource_ids": RESOURCES}
    await stack.booking.UpsertService(pb.UpsertServiceRequest(**names, duration={"seconds": 3600}))  # type: ignore[arg-type]
    any_of: Fields = {"service_id": "cut", "end_time": None} if by_service else {"any_of_resource_ids": RESOURCES}
    for number in range(ANY_ROUNDS):
        requests = [
            booking_request(
                FUTURE + number * 3600, customer_phone=f"+49151123{caller:05}", ignore_rules=False, **any_of
            )
            for caller in range(32)
        ]
        outcomes = Counter(await asyncio.gather(*(outcome(stack, request) for request in requests)))
        assert outcomes == {"SLOT_UNAVAILABLE": 27, **dict.fromkeys(RESOURCES, 1)}, number
    assert rows(stack.database_url, OVERLAPS) == []
    assert deadlocks(stack) == 0


@pytest.mark.patient
async def test_two_callers_at_once_never_book_closer_than_their_buffers(stack: Stack) -> None:
    await salon(stack, resources=RESOURCES, **ALWAYS, booking_rules={"buffer_after": {"seconds": 900}})

    async def one_round(number: int) -> None:
        start = FUTURE + number * 43_200
        gap = (0, 300, 899, 900)[number % 4]
        requests = [
            booking_request(at, resource_id=RESOURCES[0], ignore_rules=False, customer_phone=f"+4915112345{caller:03}")
            for caller, at in enumerate((start, start + 3600 + gap))
        ]
        outcomes = Counter(await asyncio.gather(*(outcome(stack, request) for request in requests)))
        assert outcomes == ({RESOURCES[0]: 2} if gap == 900 else {RESOURCES[0]: 1, "SLOT_UNAVAILABLE": 1})

    for first in range(0, BUFFER_ROUNDS, 10):
        await asyncio.gather(*(one_round(number) for number in range(first, first + 10)))
    assert rows(stack.database_url, CLOSE) == []
    assert len(rows(stack.database_url, "SELECT FROM bookings")) == BUFFER_ROUNDS * 5 // 4
    assert deadlocks(stack) == 0


@pytest.mark.patient
async def test_bookings_of_one_customer_in_different_ways_never_deadlock(stack: Stack) -> None:
    await salon(stack, resources=RESOURCES, **ALWAYS)
    names: Fields = {"salon_id": SALON, "service_id": "cut", "name": "Cut"}
    await stack.booking.UpsertService(pb.UpsertServiceRequest(**names, duration={"seconds": 3600}))  # type: ignore[arg-type]
    phone = "+4915112345660"  # the number of its lock is larger than those of all the resources
    booking = await stack.booking.CreateBooking(booking_request(FUTURE - 86_400))
    update: Fields = {"salon_id": SALON, "booking_code": booking.booking_code, "customer_phone": phone}
    ways: list[Fields] = [
        {"service_id": "cut", "end_time": None},
        *({"resource_id": name} for name in RESOURCES),
        {"any_of_resource_ids": RESOURCES},
    ]

    async def change() -> str:
        try:
            await stack.booking.UpdateBooking(pb.UpdateBookingRequest(booking=update))  # type: ignore[arg-type]
        except grpc.aio.AioRpcError as error:
            return read_failure(error).reason
        return "OK"

    for number in range(20):
        at: Fields = {"start": FUTURE + number * 3600, "customer_phone": phone}
        calls = [outcome(stack, booking_request(**at, **way)) for _ in range(3) for way in ways]
        outcomes = Counter(await asyncio.gather(*calls, change(), change()))
        assert outcomes == {"SLOT_UNAVAILABLE": 16, "OK": 2, **dict.fromkeys(RESOURCES, 1)}
    assert deadlocks(stack) == 0
