"""Bookings are created, found and change status; two bookings of one resource never overlap."""

import asyncio
from collections import Counter
from itertools import product
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import PreconditionFailure

from parlor.booking.v1 import booking_pb2 as pb
from services.booking.write_rpcs import CODE_LETTERS
from tests.stack import PHONE, SALON, Stack, booking_request, cached, failure, rows, salon, warm

NOON = 1_700_000_000
HOUR = 3600
PENDING, CONFIRMED = pb.BOOKING_STATUS_PENDING, pb.BOOKING_STATUS_CONFIRMED
ALLOWED = {
    PENDING: {CONFIRMED, pb.BOOKING_STATUS_CANCELLED},
    CONFIRMED: {pb.BOOKING_STATUS_COMPLETED, pb.BOOKING_STATUS_CANCELLED, pb.BOOKING_STATUS_NO_SHOW},
    pb.BOOKING_STATUS_COMPLETED: {pb.BOOKING_STATUS_NO_SHOW, CONFIRMED},
    pb.BOOKING_STATUS_NO_SHOW: {pb.BOOKING_STATUS_COMPLETED, CONFIRMED},
}
REQUESTED = [status for status in pb.BookingStatus.values()[1:] if status != pb.BOOKING_STATUS_EXPIRED]


async def move(stack: Stack, booking: pb.Booking, status: pb.BookingStatus.ValueType, etag: str = "") -> pb.Booking:
    """Move a booking to another status."""
    names: Any = {"salon_id": booking.salon_id, "booking_code": booking.booking_code}
    return await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, status=status, etag=etag))


async def test_a_booking_is_found_by_its_code_and_then_cached(stack: Stack) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request())
    wanted = pb.GetBookingByCodeRequest(salon_id=SALON, booking_code=booking.booking_code.lower())
    assert await cached(stack.booking.GetBookingByCode(wanted)) == (booking, "miss")
    assert await warm(stack.booking.GetBookingByCode, wanted) == booking


async def test_a_booking_has_all_fields_of_its_request(stack: Stack) -> None:
    await salon(stack)
    request = booking_request(customer_name="Zoë", resource_id="chair_1", service_name="Cut", notes="'; --\n💇")
    booking = await stack.booking.CreateBooking(request)
    for field in ("salon_id", "customer_phone", "customer_name", "resource_id", "service_name", "notes"):
        assert getattr(booking, field) == getattr(request, field)
    assert (booking.start_time, booking.end_time) == (request.start_time, request.end_time)
    assert (booking.status, booking.revision, booking.etag) == (PENDING, 1, "1")
    assert len(booking.booking_code) == 6
    assert set(booking.booking_code) <= set(CODE_LETTERS)
    assert booking.create_time == booking.update_time


async def test_times_are_kept_to_the_microsecond(stack: Stack) -> None:
    await salon(stack)
    start, end = Timestamp(seconds=NOON, nanos=123_456_789), Timestamp(seconds=NOON, nanos=123_457_000)
    booking = await stack.booking.CreateBooking(booking_request(start_time=start, end_time=end))
    assert (booking.start_time.nanos, booking.end_time.nanos) == (123_456_000, 123_457_000)
    end.nanos = 123_456_999
    assert (await failure(stack.booking.CreateBooking(booking_request(start_time=start, end_time=end)))).fields == [
        "end_time"
    ]


async def test_an_overlapping_booking_is_refused(stack: Stack) -> None:
    await salon(stack)
    await stack.booking.CreateBooking(booking_request(NOON, resource_id="anna", status=CONFIRMED))
    for start in (NOON - HOUR + 1, NOON, NOON + HOUR - 1):
        error = await failure(stack.booking.CreateBooking(booking_request(start, resource_id="anna")))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SLOT_UNAVAILABLE")
        assert error.has(PreconditionFailure)


async def test_touching_bookings_do_not_overlap(stack: Stack) -> None:
    await salon(stack)
    for start in (NOON, NOON + HOUR, NOON - HOUR):
        await stack.booking.CreateBooking(booking_request(start, resource_id="anna"))


async def test_other_resources_other_salons_and_no_resource_never_conflict(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    for fields in ({"resource_id": "anna"}, {"resource_id": "ben"}, {}, {}):
        await stack.booking.CreateBooking(booking_request(NOON, **fields))
    await stack.booking.CreateBooking(booking_request(NOON, salon_id="salon-2", resource_id="anna"))


async def test_a_final_booking_frees_its_slot(stack: Stack) -> None:
    await salon(stack)
    for final in ALLOWED[CONFIRMED]:
        booking = await stack.booking.CreateBooking(booking_request(NOON, resource_id="anna", status=CONFIRMED))
        await move(stack, booking, final)


@pytest.mark.patient
async def test_64_concurrent_requests_for_a_slot_make_one_booking(stack: Stack) -> None:
    await salon(stack)

    async def book() -> str:
        try:
            await stack.booking.CreateBooking(booking_request(resource_id="anna"))
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"

    outcomes = Counter(await asyncio.gather(*(book() for _ in range(64))))
    assert outcomes == {"OK": 1, "FAILED_PRECONDITION: anna is taken at that time": 63}
    assert rows(stack.database_url, "SELECT count(*) FROM bookings") == [(1,)]


async def test_a_booking_needs_its_salon(stack: Stack) -> None:
    error = await failure(stack.booking.CreateBooking(booking_request()))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")


async def test_a_booking_is_not_found_in_another_salon(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    booking = await stack.booking.CreateBooking(booking_request())
    wanted = pb.GetBookingByCodeRequest(salon_id="salon-2", booking_code=booking.booking_code)
    assert (await failure(stack.booking.GetBookingByCode(wanted))).reason == "BOOKING_NOT_FOUND"
    booking.salon_id = "salon-2"
    assert (await failure(move(stack, booking, CONFIRMED))).reason == "BOOKING_NOT_FOUND"


async def test_a_status_changes_only_along_its_transitions(stack: Stack) -> None:
    await salon(stack)
    for before, after in product(pb.BookingStatus.values()[1:], REQUESTED):
        status = PENDING if before in (PENDING, pb.BOOKING_STATUS_EXPIRED) else CONFIRMED
        booking = await stack.booking.CreateBooking(booking_request(NOON, status=status))
        if before == pb.BOOKING_STATUS_EXPIRED:
            rows(stack.database_url, "UPDATE bookings SET status = 'EXPIRED' WHERE status = 'PENDING' RETURNING 1")
        elif before not in (PENDING, CONFIRMED):
            booking = await move(stack, booking, before)
        if after in ALLOWED.get(before, ()):
            moved = await move(stack, booking, after)
            assert (moved.status, moved.revision) == (after, booking.revision + 1)
            continue
        error = await failure(move(stack, booking, after))
        if (before, after) == (pb.BOOKING_STATUS_EXPIRED, CONFIRMED):
            assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "HOLD_EXPIRED")
            continue
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION")
        assert error.metadata == {"from": pb.BookingStatus.Name(before), "to": pb.BookingStatus.Name(after)}
        assert ("that is final" in error.message) == (before not in ALLOWED)
        assert error.has(PreconditionFailure)


async def test_only_the_service_ends_a_hold(stack: Stack) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request())
    error = await failure(move(stack, booking, pb.BOOKING_STATUS_EXPIRED))
    assert (error.reason, error.fields) == ("INVALID_FIELD", ["status"])


async def test_an_outcome_is_known_from_the_start_on(stack: Stack) -> None:
    await salon(stack)
    coming = await stack.booking.CreateBooking(booking_request(4_000_000_000, status=CONFIRMED))
    for outcome in (pb.BOOKING_STATUS_COMPLETED, pb.BOOKING_STATUS_NO_SHOW):
        error = await failure(move(stack, coming, outcome))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION")
        assert "before its start_time" in error.message


async def test_an_outcome_is_corrected_only_while_its_time_is_free(stack: Stack) -> None:
    await salon(stack)
    for outcome in (pb.BOOKING_STATUS_COMPLETED, pb.BOOKING_STATUS_NO_SHOW):
        first = await stack.booking.CreateBooking(booking_request(NOON, resource_id="anna", status=CONFIRMED))
        await move(stack, first, outcome)
        second = await stack.booking.CreateBooking(booking_request(NOON + 1800, resource_id="anna"))
        error = await failure(move(stack, first, CONFIRMED))
        assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SLOT_UNAVAILABLE")
        assert error.metadata == {
            "conflict_start_time": second.start_time.ToJsonString(),
            "conflict_end_time": second.end_time.ToJsonString(),
        }
        await move(stack, second, pb.BOOKING_STATUS_CANCELLED)
        assert (await move(stack, first, CONFIRMED)).status == CONFIRMED
        await move(stack, first, pb.BOOKING_STATUS_CANCELLED)


async def test_a_change_with_an_old_etag_is_refused(stack: Stack) -> None:
    await salon(stack)
    first = await stack.booking.CreateBooking(booking_request())
    second = await move(stack, first, CONFIRMED, first.etag)
    assert second.etag != first.etag
    error = await failure(move(stack, first, pb.BOOKING_STATUS_CANCELLED, first.etag))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    await move(stack, second, pb.BOOKING_STATUS_CANCELLED, second.etag)


async def test_of_two_changes_with_one_etag_one_succeeds(stack: Stack) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(customer_phone=PHONE))
    changes = [move(stack, booking, status, booking.etag) for status in ALLOWED[PENDING]]
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AioRpcError", "Booking"]
