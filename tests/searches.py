"""Searches of SearchAvailability in a salon that opens from 9 to 12 h, and a clock for the booking service."""

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as pb
from tests.calendars import DAY, HOUR, MINUTE, Hours
from tests.stack import SALON, Fields, Stack, quiet, salon
from tests.test_resources import resource

EVERY_DAY = range(7)
MONDAY = 1_800_000_000 - 1_800_000_000 % (7 * DAY) + 4 * DAY
NINE = MONDAY + 9 * HOUR


@pytest.fixture
def clock() -> list[int]:
    """The time of the booking service's clock, in s since 1970."""
    return [0]


@pytest.fixture
async def stack(database_url: str, redis_url: str, clock: list[int]) -> Any:
    """The three services; the booking service uses `clock`, and no service sends anything in the background."""
    async with quiet(database_url, redis_url, now=lambda: datetime.fromtimestamp(clock[0], UTC)) as stack:
        yield stack


def request(
    start: int, end: int, minutes: int = 60, salon_id: str = SALON, **fields: Any
) -> pb.SearchAvailabilityRequest:
    """Return a search; the Durations of `fields` are in s."""
    for name in ("step", "buffer_before", "buffer_after", "minimum_notice", "horizon"):
        if fields.get(name) is not None:
            fields[name] = Duration(seconds=fields[name])
    period: Fields = {"start_time": Timestamp(seconds=start), "end_time": Timestamp(seconds=end)}
    duration = Duration(seconds=minutes * MINUTE)
    return pb.SearchAvailabilityRequest(salon_id=salon_id, duration=duration, **period, **fields)


async def found(stack: Stack, search: pb.SearchAvailabilityRequest) -> list[tuple[int, str]]:
    """Return the starts and resources of a search, and check the ends."""
    slots = (await stack.booking.SearchAvailability(search)).slots
    for slot in slots:
        assert slot.end_time.seconds - slot.start_time.seconds == search.duration.seconds
        assert slot.start_time.nanos == slot.end_time.nanos == 0
    return [(slot.start_time.seconds, slot.resource_id) for slot in slots]


async def opened(stack: Stack, *names: str, hours: tuple[int, int] = (9 * 60, 12 * 60), **fields: Any) -> None:
    """Create a salon in UTC that is open every day, and its resources."""
    week = Hours({day: [hours] for day in EVERY_DAY}).opening_hours()
    await salon(stack, **{"resources": (), "time_zone": "UTC", "opening_hours": week, **fields})
    for name in names:
        await resource(stack, name)


async def off(stack: Stack, start: int, end: int, resource_id: str = "") -> None:
    times: Fields = {"start_time": {"seconds": start}, "end_time": {"seconds": end}}
    await stack.booking.CreateTimeOff(pb.CreateTimeOffRequest(salon_id=SALON, resource_id=resource_id, **times))
