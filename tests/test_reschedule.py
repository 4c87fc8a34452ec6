"""RescheduleBooking: another time or resource under the same code; the exclusion constraint decides."""

import asyncio
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import PreconditionFailure

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Stack, booking_request, failure, rows, salon

NOON = 1_700_000_000
HOUR = 3600
CONFIRMED = pb.BOOKING_STATUS_CONFIRMED


def at(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)


def to(booking: pb.Booking, **fields: Any) -> pb.RescheduleBookingRequest:
    """Return a request to move a booking. It ignores the rules, like booking_request."""
    names: dict[str, Any] = {"salon_id": booking.salon_id, "booking_code": booking.booking_code, "ignore_rules": True}
    return pb.RescheduleBookingRequest(**{**names, **fields})


async def booked(stack: Stack, start: int = NOON, resource_id: str = "anna", **fields: Any) -> pb.Booking:
    return await stack.booking.CreateBooking(booking_request(start, resource_id=resource_id, **fields))


async def test_a_booking_keeps_its_code_status_and_length(stack: Stack) -> None:
    await salon(stack)
    before = await booked(stack, status=CONFIRMED, notes="short")
    after = await stack.booking.RescheduleBooking(to(before, start_time=at(NOON + 3 * HOUR)))
    assert (after.start_time, after.end_time) == (at(NOON + 3 * HOUR), at(NOON + 4 * HOUR))
    assert (after.revision, after.etag) == (2, "2")
    assert after.update_time.ToNanoseconds() > before.update_time.ToNanoseconds()
    for field in ("start_time", "end_time", "revision", "etag", "update_time"):
        after.ClearField(field)
        before.ClearField(field)
    assert after == before


async def test_start_end_and_resource_can_each_change(stack: Stack) -> None:
    await salon(stack)
    booking = await booked(stack)
    to_ben = await stack.booking.RescheduleBooking(to(booking, resource_id="ben"))
    assert (to_ben.resource_id, to_ben.start_time, to_ben.end_time) == ("ben", booking.start_time, booking.end_time)
    longer = await stack.booking.RescheduleBooking(to(booking, start_time=at(NOON), end_time=at(NOON + 2 * HOUR)))
    assert (longer.resource_id, longer.end_time) == ("ben", at(NOON + 2 * HOUR))
    both = await stack.booking.RescheduleBooking(to(booking, start_time=at(NOON + HOUR), resource_id="cleo"))
    assert (both.resource_id, both.start_time, both.end_time) == ("cleo", at(NOON + HOUR), at(NOON + 3 * HOUR))
    listed = await stack.booking.ListResources(pb.ListResourcesRequest(salon_id=SALON))
    assert [(one.resource_id, one.name, one.active) for one in listed.resources] == [
        (name, name, True) for name in ("anna", "ben", "chair_1", "cleo")
    ]


async def test_a_booking_can_move_to_a_time_that_overlaps_its_old_one(stack: Stack) -> None:
    await salon(stack)
    booking = await booked(stack)
    for start in (NOON + 900, NOON + 900, NOON - 900):
        moved = await stack.booking.RescheduleBooking(to(booking, start_time=at(start)))
        assert moved.start_time == at(start)
    assert moved.revision == 4


async def test_a_booking_without_a_resource_moves_freely(stack: Stack) -> None:
    await salon(stack)
    await booked(stack)
    free = await booked(stack, resource_id="")
    moved = await stack.booking.RescheduleBooking(to(free, start_time=at(NOON)))
    assert moved.resource_id == ""
    error = await failure(stack.booking.RescheduleBooking(to(free, resource_id="anna")))
    assert error.reason == "SLOT_UNAVAILABLE"


async def test_an_overlapping_time_is_refused_and_nothing_changes(stack: Stack) -> None:
    await salon(stack)
    await booked(stack, NOON + HOUR)
    booking = await booked(stack)
    for fields in ({"start_time": at(NOON + 1)}, {"start_time": at(NOON), "end_time": at(NOON + 4 * HOUR)}):
        error = await failure(stack.booking.RescheduleBooking(to(booking, **fields)))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SLOT_UNAVAILABLE")
        assert error.has(PreconditionFailure)
    wanted = pb.GetBookingByCodeRequest(salon_id=SALON, booking_code=booking.booking_code)
    assert await stack.booking.GetBookingByCode(wanted) == booking
    assert rows(stack.database_url, "SELECT count(*) FROM booking_events") == [(2,)]


async def test_the_old_time_is_free_after_a_move(stack: Stack) -> None:
    await salon(stack)
    await stack.booking.RescheduleBooking(to(await booked(stack), start_time=at(NOON + HOUR)))
    await booked(stack)


async def test_a_final_booking_cannot_be_rescheduled(stack: Stack) -> None:
    await salon(stack)
    for status in ("CANCELLED", "COMPLETED", "NO_SHOW"):
        booking = await booked(stack, status=CONFIRMED)
        names = {"salon_id": SALON, "booking_code": booking.booking_code}
        await stack.booking.UpdateBookingStatus(
            pb.UpdateBookingStatusRequest(**names, status=f"BOOKING_STATUS_{status}")  # type: ignore[arg-type]
        )
        error = await failure(stack.booking.RescheduleBooking(to(booking, start_time=at(NOON + HOUR))))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION")
        assert error.metadata == {"from": f"BOOKING_STATUS_{status}", "to": f"BOOKING_STATUS_{status}"}
        assert error.message == f"the booking is {status}: its time can't change any more"


async def test_an_old_etag_an_unknown_code_and_another_salon_are_refused(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    booking = await booked(stack)
    await stack.booking.RescheduleBooking(to(booking, start_time=at(NOON + HOUR), etag="1"))
    error = await failure(stack.booking.RescheduleBooking(to(booking, start_time=at(NOON), etag="1")))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    booking.salon_id = "salon-2"
    error = await failure(stack.booking.RescheduleBooking(to(booking, start_time=at(NOON))))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "BOOKING_NOT_FOUND")


async def test_invalid_times_are_refused(stack: Stack) -> None:
    await salon(stack)
    booking = await booked(stack)
    last = 253_370_764_799
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "start_time"),
        ({"end_time": at(NOON)}, "end_time"),
        ({"end_time": at(NOON - 1)}, "end_time"),
        ({"start_time": at(NOON), "end_time": at(NOON)}, "end_time"),
        ({"start_time": Timestamp(seconds=NOON, nanos=1), "end_time": Timestamp(seconds=NOON, nanos=2)}, "end_time"),
        ({"start_time": at(last)}, "start_time"),
        ({"resource_id": "a b"}, "resource_id"),
    ]
    for fields, field in wrong:
        error = await failure(stack.booking.RescheduleBooking(to(booking, **fields)))
        assert (error.reason, field in error.fields) == ("INVALID_FIELD", True), (fields, error.fields)


async def test_bookings_that_swap_resources_concurrently_never_deadlock(stack: Stack) -> None:
    await salon(stack)
    one, two = await booked(stack, resource_id="anna"), await booked(stack, resource_id="ben")
    for _ in range(20):
        moves = [to(one, resource_id="ben"), to(two, resource_id="anna")]
        outcomes = await asyncio.gather(*map(stack.booking.RescheduleBooking, moves), return_exceptions=True)
        assert all(
            "is taken" in (error.details() or "") for error in outcomes if isinstance(error, grpc.aio.AioRpcError)
        )
        assert sum(isinstance(moved, pb.Booking) for moved in outcomes) == 0
