"""The history of a booking: its events with actor, reason, and the values before and after."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest

from parlor.booking.v1 import booking_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.locks import holding, waiting
from tests.stack import PHONE, SALON, Fields, Stack, booking_request, failure, fresh, salon, walk, warm

NOON = 1_800_000_000
CONFIRMED, CANCELLED = pb.BOOKING_STATUS_CONFIRMED, pb.BOOKING_STATUS_CANCELLED


async def lived(stack: Stack) -> tuple[pb.Booking, pb.ListBookingEventsRequest]:
    """Return a booking that was created, confirmed, rescheduled and canceled."""
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(NOON, resource_id="anna", actor="bot"))
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, status=CONFIRMED, actor="zoe.h"))
    moved: Fields = {"start_time": {"seconds": NOON + 900}, "resource_id": "ben", "actor": "bot", "reason": "traffic"}
    await stack.booking.RescheduleBooking(pb.RescheduleBookingRequest(**names, **moved, ignore_rules=True))
    cancel: Fields = {"status": CANCELLED, "reason": "ill 🤒"}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, **cancel))
    return booking, pb.ListBookingEventsRequest(**names)


async def test_each_event_has_the_values_before_and_after(stack: Stack) -> None:
    booking, request = await lived(stack)
    made, confirmed, moved, cancelled = (await stack.booking.ListBookingEvents(request)).booking_events
    later: Fields = {"to_start_time": {"seconds": NOON + 900}, "to_end_time": {"seconds": NOON + 4500}}
    first: Fields = {"to_start_time": booking.start_time, "to_end_time": booking.end_time}
    expected: list[Fields] = [
        {"type": 1, "actor": "bot", "to_status": 1, **first, "to_resource_id": "anna"},
        {"type": 2, "actor": "zoe.h", "from_status": 1, "to_status": 2, **first, "to_resource_id": "anna"},
        {
            "type": 3,
            "actor": "bot",
            "reason": "traffic",
            "from_status": 2,
            "to_status": 2,
            **later,
            "to_resource_id": "ben",
        },
        {"type": 2, "reason": "ill 🤒", "from_status": 2, "to_status": 3, **later, "to_resource_id": "ben"},
    ]
    before = None
    for revision, (event, fields) in enumerate(zip((made, confirmed, moved, cancelled), expected, strict=True), 1):
        wanted = pb.BookingEvent(booking_code=booking.booking_code, revision=revision, **fields)
        wanted.create_time.CopyFrom(event.create_time)
        if before:
            wanted.from_start_time.CopyFrom(before.to_start_time)
            wanted.from_end_time.CopyFrom(before.to_end_time)
            wanted.from_resource_id = before.to_resource_id
        assert event == wanted
        before = event
    assert made.create_time == booking.create_time


async def test_pages_hold_each_event_once(stack: Stack) -> None:
    _, request = await lived(stack)
    for page_size in (1, 2, 3, 4, 5):
        listed = await walk(stack.booking.ListBookingEvents, request, page_size)
        assert [event.revision for event in listed] == [1, 2, 3, 4]


async def test_a_page_token_is_valid_only_for_its_booking(stack: Stack) -> None:
    _, request = await lived(stack)
    request.page_size = 1
    token = (await stack.booking.ListBookingEvents(request)).next_page_token
    other = await stack.booking.CreateBooking(booking_request())
    wrong = pb.ListBookingEventsRequest(salon_id=SALON, booking_code=other.booking_code, page_token=token)
    assert (await failure(stack.booking.ListBookingEvents(wrong))).fields == ["page_token"]
    request.booking_code = request.booking_code.lower()
    request.page_token = token
    assert (await stack.booking.ListBookingEvents(request)).booking_events[0].revision == 2


async def test_unknown_codes_and_those_of_other_salons_have_no_history(stack: Stack) -> None:
    _, request = await lived(stack)
    await salon(stack, "salon-2")
    for salon_id, code in (("salon-2", request.booking_code), (SALON, "ABCDEF"), ("nobody", "ABCDEF")):
        wrong = pb.ListBookingEventsRequest(salon_id=salon_id, booking_code=code)
        error = await failure(stack.booking.ListBookingEvents(wrong))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "BOOKING_NOT_FOUND")


async def test_each_change_is_in_the_next_reply_of_every_read(stack: Stack) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(NOON, resource_id="anna"))
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code}
    period: Fields = {"start_time": {"seconds": NOON}, "end_time": {"seconds": NOON + 60}}
    reads: list[tuple[Any, Any]] = [
        (stack.booking.GetBookingByCode, pb.GetBookingByCodeRequest(**names)),
        (stack.booking.ListBookings, pb.ListBookingsRequest(salon_id=SALON)),
        (stack.booking.ListBookingEvents, pb.ListBookingEventsRequest(**names)),
        (stack.stats.GetSalonStats, stats_pb2.GetSalonStatsRequest(salon_id=SALON, **period)),
    ]
    of_code = pb.BatchGetBookingsRequest(salon_id=SALON, booking_codes=[booking.booking_code])
    move = pb.RescheduleBookingRequest(**names, start_time={"seconds": NOON + 3600}, ignore_rules=True)  # type: ignore[arg-type]
    erase = pb.EraseCustomerRequest(salon_id=SALON, phone_number=booking.customer_phone)
    calls: list[tuple[Any, Any]] = [
        (stack.booking.RescheduleBooking, move),
        (stack.booking.UpdateBookingStatus, pb.UpdateBookingStatusRequest(**names, status=CONFIRMED)),
        (stack.booking.EraseCustomer, erase),
    ]
    for revision, (write, request) in enumerate(calls, 2):
        for rpc, read in reads:
            await warm(rpc, read)
        await write(request)
        found, listed, history, stats = [await fresh(rpc, read) for rpc, read in reads]
        batch = await stack.booking.BatchGetBookings(of_code)
        assert found.revision == listed.bookings[0].revision == batch.bookings[0].revision == revision
        assert len(history.booking_events) == min(revision, 3)
        assert stats.bookings == 0


async def test_a_change_that_waited_for_a_lock_is_later_than_the_previous_one(stack: Stack) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(NOON))
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code}
    busy = booking_request(NOON + 7200, resource_id="ben", request_id=str(uuid4()))
    row = f"INSERT INTO booking_requests VALUES ('{SALON}', '{busy.request_id}', '', '')"
    async with holding(stack.database_url, row) as other:
        calls = [asyncio.ensure_future(stack.booking.CreateBooking(busy))]
        await waiting(other)
        move = pb.RescheduleBookingRequest(**names, resource_id="ben", ignore_rules=True)
        calls.append(asyncio.ensure_future(stack.booking.RescheduleBooking(move)))
        await waiting(other, 2)
        confirm = pb.UpdateBookingStatusRequest(**names, status=CONFIRMED)
        confirmed = await stack.booking.UpdateBookingStatus(confirm)
    _, moved = await asyncio.gather(*calls)
    assert moved.update_time.ToNanoseconds() > confirmed.update_time.ToNanoseconds()
    events = (await stack.booking.ListBookingEvents(pb.ListBookingEventsRequest(**names))).booking_events
    assert [event.create_time for event in events] == [at.update_time for at in (booking, confirmed, moved)]


@pytest.mark.parametrize(
    "actor", ["Zoe Hartmann", "zoë", "ZOE", PHONE, "whatsapp:1", "a@b", "x" * 65, "bot ", "bot\n", "4915112345678/"]
)
async def test_an_actor_is_an_id(stack: Stack, actor: str) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(NOON, resource_id="anna", actor="a-z_0.9" + "x" * 57))
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code, "actor": actor}
    calls: list[Any] = [
        stack.booking.CreateBooking(booking_request(actor=actor)),
        stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, status=CONFIRMED)),
        stack.booking.RescheduleBooking(pb.RescheduleBookingRequest(**names, resource_id="ben")),
    ]
    for call in calls:
        refused = await failure(call)
        assert (refused.reason, refused.fields) == ("INVALID_FIELD", ["actor"])
        assert actor not in refused.message
