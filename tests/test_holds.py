"""Holds block a time until they expire; no background job is needed for that."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Fields, Stack, booking_request, failure, rows, salon

NOON = 4_000_000_000 - 4_000_000_000 % 3600
PAST = 1_700_000_000
HOUR = 3600
PENDING, CONFIRMED = pb.BOOKING_STATUS_PENDING, pb.BOOKING_STATUS_CONFIRMED


async def hold(stack: Stack, start: int = NOON, **fields: Any) -> pb.Booking:
    values = {"resource_id": "anna", "hold_duration": Duration(seconds=600), **fields}
    return await stack.booking.CreateBooking(booking_request(start, **values))


def expire(stack: Stack) -> None:
    """Make every hold expire."""
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() WHERE hold_expires_at > now() RETURNING 1")


async def move(stack: Stack, booking: pb.Booking, status: pb.BookingStatus.ValueType) -> pb.Booking:
    names: Any = {"salon_id": SALON, "booking_code": booking.booking_code}
    return await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, status=status))


async def events(stack: Stack, booking: pb.Booking) -> list[pb.BookingEvent]:
    request = pb.ListBookingEventsRequest(salon_id=SALON, booking_code=booking.booking_code)
    return list((await stack.booking.ListBookingEvents(request)).booking_events)


async def expired(stack: Stack) -> pb.Booking:
    await salon(stack)
    held = await hold(stack)
    expire(stack)
    return held


async def has_expired(stack: Stack, held: pb.Booking) -> None:
    """Check that a hold was ended for a new booking."""
    _, ended = await events(stack, held)
    assert (ended.revision, ended.actor, ended.reason) == (2, "system", "HOLD_EXPIRED")
    assert (ended.from_status, ended.to_status) == (PENDING, pb.BOOKING_STATUS_EXPIRED)
    assert (ended.from_start_time, ended.to_start_time) == (held.start_time, held.start_time)
    assert ended.type == pb.BOOKING_EVENT_TYPE_STATUS_CHANGED
    wanted = pb.GetBookingByCodeRequest(salon_id=SALON, booking_code=held.booking_code)
    now = await stack.booking.GetBookingByCode(wanted)
    assert (now.status, now.revision) == (pb.BOOKING_STATUS_EXPIRED, 2)


async def test_a_hold_blocks_until_its_hold_expire_time(stack: Stack) -> None:
    await salon(stack)
    held = await hold(stack)
    lasts = held.hold_expire_time.ToDatetime() - held.create_time.ToDatetime()
    assert (held.status, lasts) == (PENDING, timedelta(seconds=600))
    assert (await failure(hold(stack, NOON + 1800))).reason == "SLOT_UNAVAILABLE"
    assert not (await hold(stack, NOON + HOUR, hold_duration=None)).HasField("hold_expire_time")


async def test_a_confirmed_hold_no_longer_expires(stack: Stack) -> None:
    await salon(stack)
    held = await hold(stack, PAST)
    confirmed = await move(stack, held, CONFIRMED)
    assert not confirmed.HasField("hold_expire_time")
    expire(stack)
    assert (await failure(hold(stack, PAST))).reason == "SLOT_UNAVAILABLE"
    await move(stack, confirmed, pb.BOOKING_STATUS_COMPLETED)


async def test_an_expired_hold_can_be_rebooked(stack: Stack) -> None:
    held = await expired(stack)
    taken = await hold(stack, NOON - 1800)
    await has_expired(stack, held)
    assert [event.type for event in await events(stack, taken)] == [pb.BOOKING_EVENT_TYPE_CREATED]


async def test_a_booking_can_be_rescheduled_over_expired_holds(stack: Stack) -> None:
    await salon(stack)
    held = [
        await hold(stack, NOON + quarter * 900, end_time=Timestamp(seconds=NOON + quarter * 900 + 900))
        for quarter in range(3)
    ]
    expire(stack)
    booking = await hold(stack, NOON + 4 * HOUR)
    moved = await stack.booking.RescheduleBooking(
        pb.RescheduleBookingRequest(
            salon_id=SALON, booking_code=booking.booking_code, start_time=Timestamp(seconds=NOON), ignore_rules=True
        )
    )
    assert (moved.status, moved.hold_expire_time) == (PENDING, booking.hold_expire_time)
    for one in held:
        await has_expired(stack, one)


async def test_an_expired_hold_that_does_not_overlap_is_not_ended(stack: Stack) -> None:
    held = await expired(stack)
    for fields in ({"start": NOON + HOUR}, {"resource_id": "ben"}, {"resource_id": ""}):
        await hold(stack, **fields)
    assert len(await events(stack, held)) == 1


async def test_the_time_of_an_expired_hold_is_offered(stack: Stack) -> None:
    midnight = NOON // 86_400 * 86_400
    every_day: list[Any] = [{"day_of_week": day, "open_time": {}, "close_time": {"hours": 24}} for day in range(1, 8)]
    await salon(stack, resources=["anna"], time_zone="UTC", opening_hours=every_day)
    await hold(stack, midnight)
    times: Fields = {"start_time": Timestamp(seconds=midnight), "end_time": Timestamp(seconds=midnight + 2 * HOUR)}
    request = pb.SearchAvailabilityRequest(salon_id=SALON, **times, duration=Duration(seconds=HOUR))
    for starts in ([midnight + HOUR], [midnight, midnight + HOUR]):
        found = await stack.booking.SearchAvailability(request)
        assert [slot.start_time.seconds for slot in found.slots] == starts
        expire(stack)


async def test_an_expired_hold_can_only_be_cancelled(stack: Stack) -> None:
    held = await expired(stack)
    moved = pb.RescheduleBookingRequest(salon_id=SALON, booking_code=held.booking_code, resource_id="ben")
    for call in (move(stack, held, CONFIRMED), stack.booking.RescheduleBooking(moved)):
        error = await failure(call)
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "HOLD_EXPIRED")
    assert len(await events(stack, held)) == 1
    assert (await move(stack, held, pb.BOOKING_STATUS_CANCELLED)).revision == 2
    await hold(stack)


async def test_a_hold_must_be_pending_and_expire_at_a_whole_second(stack: Stack) -> None:
    await salon(stack)
    wrong: list[dict[str, Any]] = [
        {"status": CONFIRMED},
        {"hold_duration": Duration(seconds=0)},
        {"hold_duration": Duration(seconds=604_801)},
        {"hold_duration": Duration(seconds=5, nanos=1)},
    ]
    for fields in wrong:
        error = await failure(hold(stack, **fields))
        assert (error.reason, error.fields) == ("INVALID_FIELD", ["hold_duration"])


@pytest.mark.patient
async def test_32_concurrent_requests_over_an_expired_hold_make_one_booking(stack: Stack) -> None:
    held = await expired(stack)

    async def book() -> str:
        try:
            await hold(stack)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"

    outcomes = Counter(await asyncio.gather(*(book() for _ in range(32))))
    assert outcomes == {"OK": 1, "FAILED_PRECONDITION: anna is taken at that time": 31}
    await has_expired(stack, held)


async def test_of_a_confirmation_and_a_booking_over_an_expiring_hold_one_succeeds(stack: Stack) -> None:
    held = await expired(stack)
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() + interval '20 ms' RETURNING 1")
    calls = (call for _ in range(8) for call in (move(stack, held, CONFIRMED), hold(stack)))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, pb.Booking) or any(
            words in str(outcome) for words in ("is taken", "the booking is ", "has expired")
        )
    query = "SELECT count(*) FROM bookings WHERE status = 'CONFIRMED' OR status = 'PENDING' AND hold_expires_at > now()"
    assert rows(stack.database_url, query)[0][0] <= 1
