"""Calls of the booking service that keep the rules, in a salon in UTC, by the hours since a Monday."""

from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import PreconditionFailure

from parlor.booking.v1 import booking_pb2 as pb
from tests.calendars import DAY, HOUR, MINUTE, Hours
from tests.stack import SALON, Failure, Fields, Stack, booking_request, running, salon
from tests.test_services import service

MONDAY = 1_800_000_000 - 1_800_000_000 % (7 * DAY) + 4 * DAY
NOW = MONDAY + 10 * HOUR
WORKDAYS = Hours({day: [(9 * 60, 18 * 60)] for day in range(6)}).opening_hours()
ALWAYS = Hours({day: [(0, 1440)] for day in range(7)}).opening_hours()
OTHER_PHONE = "+4915112345679"
SECOND = 1 / HOUR


@pytest.fixture
def clock() -> list[int]:
    """The time of the booking service's clock, in s since 1970."""
    return [NOW]


@pytest.fixture
async def stack(database_url: str, redis_url: str, clock: list[int]) -> Any:
    """The three services; the booking service uses `clock`."""
    async with running(database_url, redis_url, now=lambda: datetime.fromtimestamp(clock[0], UTC)) as stack:
        yield stack


def at(hour: float) -> Timestamp:
    """Return a time by its hours since Monday, 0:00 UTC."""
    return Timestamp(seconds=MONDAY + round(hour * HOUR))


async def opened(stack: Stack, rules: Fields | None = None, **fields: Any) -> None:
    """Create a salon in UTC that is open from Monday to Saturday, 9 to 18 h, with rules in s."""
    booking_rules = {
        name: value if isinstance(value, bool) else Duration(seconds=value) for name, value in (rules or {}).items()
    }
    values: Fields = {"time_zone": "UTC", "opening_hours": WORKDAYS, "booking_rules": booking_rules, **fields}
    await salon(stack, **{"resources": ["anna", "ben"], **values})


async def book(stack: Stack, hour: float, hours: float = 1, **fields: Any) -> pb.Booking:
    """Book some hours, keeping the rules."""
    values: Fields = {"start_time": at(hour), "end_time": at(hour + hours), "ignore_rules": False, **fields}
    return await stack.booking.CreateBooking(booking_request(**values))


async def reschedule(stack: Stack, booking: pb.Booking, **fields: Any) -> pb.Booking:
    request = pb.RescheduleBookingRequest(salon_id=SALON, booking_code=booking.booking_code, **fields)
    return await stack.booking.RescheduleBooking(request)


async def update(stack: Stack, booking: pb.Booking, mask: str = "", **fields: Any) -> pb.Booking:
    """Update the fields of a booking that are given; those of the request are `more`."""
    more = fields.pop("more", {})
    paths: Fields = {"update_mask": {"paths": mask.split()}} if mask else {}
    changed = pb.Booking(salon_id=SALON, booking_code=booking.booking_code, **fields)
    return await stack.booking.UpdateBooking(pb.UpdateBookingRequest(booking=changed, **paths, **more))


async def read(stack: Stack, booking: pb.Booking) -> pb.Booking:
    request = pb.GetBookingByCodeRequest(salon_id=SALON, booking_code=booking.booking_code)
    return await stack.booking.GetBookingByCode(request)


async def time_off(stack: Stack, start: float, end: float, resource_id: str = "") -> pb.TimeOff:
    times: Fields = {"start_time": at(start), "end_time": at(end)}
    request = pb.CreateTimeOffRequest(salon_id=SALON, resource_id=resource_id, **times)
    return (await stack.booking.CreateTimeOff(request)).time_off


async def move(stack: Stack, booking: pb.Booking, status: str, **fields: Any) -> pb.Booking:
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code, "status": f"BOOKING_STATUS_{status}"}
    return await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, **fields))


def refused(error: Failure, reason: str) -> None:
    """Check that an error is a refusal for a reason."""
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason), error
    assert error.has(PreconditionFailure)


async def cut(stack: Stack, **fields: Any) -> pb.Service:
    """Create a service of 45 min for 30 EUR, with buffers of 5 and 10 min."""
    values: Fields = {
        "duration": Duration(seconds=45 * MINUTE),
        "buffer_before": Duration(seconds=5 * MINUTE),
        "buffer_after": Duration(seconds=10 * MINUTE),
        "price_micros": 30_000_000,
        "currency_code": "EUR",
        **fields,
    }
    return await service(stack, **values)
