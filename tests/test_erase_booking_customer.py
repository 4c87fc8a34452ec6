"""EraseCustomer removes a customer from the database and the cache; the bookings stay."""

import asyncio
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.locks import holding, waiting
from tests.stack import PHONE, SALON, Fields, Stack, booking_request, failure, rows, salon, warm
from tests.test_ownership import TABLES

NAME = "Zoë Musterfrau"
LONGER = PHONE + "9"


def erase(**fields: Any) -> pb.EraseCustomerRequest:
    return pb.EraseCustomerRequest(**{"salon_id": SALON, "phone_number": PHONE, **fields})


async def known(stack: Stack) -> list[pb.Booking]:
    """Create bookings of a customer and of others, with history, stored replies and cache entries."""
    await salon(stack, region_code="DE")
    await salon(stack, "salon-2")
    made = []
    texts: Fields = {"customer_name": NAME, "notes": f"call {PHONE}", "actor": f"whatsapp-{PHONE[1:]}"}
    for hour, status in enumerate(("PENDING", "CONFIRMED")):
        values: Fields = {"resource_id": "anna", "status": f"BOOKING_STATUS_{status}", "request_id": str(uuid4())}
        made.append(await stack.booking.CreateBooking(booking_request(1_800_000_000 + hour * 3600, **texts, **values)))
    names: Fields = {"salon_id": SALON, "booking_code": made[0].booking_code, "request_id": str(uuid4())}
    cancel: Fields = {"status": "BOOKING_STATUS_CANCELLED", "actor": "zoe", "reason": f"{NAME} is ill"}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, **cancel))
    reads: list[tuple[Any, Any]] = [
        (stack.booking.ListBookings, pb.ListBookingsRequest(salon_id=SALON)),
        (stack.booking.ListBookings, pb.ListBookingsRequest(salon_id=SALON, customer_phone=PHONE)),
    ]
    for booking in made:
        named: Fields = {"salon_id": SALON, "booking_code": booking.booking_code}
        reads.append((stack.booking.GetBookingByCode, pb.GetBookingByCodeRequest(**named)))
        reads.append((stack.booking.ListBookingEvents, pb.ListBookingEventsRequest(**named)))
    for rpc, request in reads:
        await warm(rpc, request)
    return made


def traces(stack: Stack, redis_url: str) -> list[Any]:
    """Return the rows and cache entries that contain the customer's number or name."""
    found: list[Any] = []
    with psycopg.connect(stack.database_url) as conn:
        for table in TABLES:
            where = "position(%s::bytea IN t::text::bytea) > 0 OR position(%s IN t::text) > 0"
            hexed = PHONE.encode().hex().encode()  # bytea is hexadecimal in the text of a row
            for words in (PHONE, NAME, "Musterfrau"):
                query = f"SELECT t::text FROM {table} AS t WHERE {where}".encode()
                found += conn.execute(query, (hexed, words)).fetchall()
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter("*"):
            value: Any = client.get(key)
            found += [key for trace in (PHONE, NAME) if trace.encode() in key + (value or b"")]
    return found


async def test_no_trace_of_an_erased_booking_customer_is_left(stack: Stack, redis_url: str) -> None:
    await known(stack)
    assert traces(stack, redis_url)
    assert (await stack.booking.EraseCustomer(erase())).bookings == 2
    assert traces(stack, redis_url) == []
    listed = await stack.booking.ListBookings(pb.ListBookingsRequest(salon_id=SALON))
    for booking, revision in zip(listed.bookings, (3, 2), strict=True):
        assert (booking.customer_phone, booking.customer_name, booking.notes) == ("", "", "")
        assert (booking.resource_id, booking.revision) == ("anna", revision)
    events = rows(stack.database_url, "SELECT actor, reason FROM booking_events ORDER BY booking_id, revision")
    assert sorted(events) == [("", ""), ("", ""), ("zoe", "")]


async def test_the_cancellation_reason_of_an_expired_hold_is_kept(stack: Stack) -> None:
    await salon(stack)
    await stack.booking.CreateBooking(booking_request(resource_id="anna", hold_duration={"seconds": 60}))
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() RETURNING 1")
    await stack.booking.CreateBooking(booking_request(resource_id="anna"))
    await stack.booking.EraseCustomer(erase())
    reasons = rows(stack.database_url, "SELECT reason FROM booking_events WHERE actor = 'system'")
    assert reasons == [("HOLD_EXPIRED",)]


async def test_erasure_changes_no_counts_and_frees_no_slots(stack: Stack) -> None:
    await known(stack)
    request = stats_pb2.GetSalonStatsRequest(
        salon_id=SALON, start_time=Timestamp(), end_time=Timestamp(seconds=4_000_000_000)
    )
    before = await warm(stack.stats.GetSalonStats, request)
    await stack.booking.EraseCustomer(erase())
    after = await stack.stats.GetSalonStats(request)
    assert (after.bookings, after.bookings) == (before.bookings, 2)
    taken = booking_request(1_800_000_000 + 3600, resource_id="anna")
    assert (await failure(stack.booking.CreateBooking(taken))).reason == "SLOT_UNAVAILABLE"


async def test_other_customers_are_not_erased(stack: Stack) -> None:
    await known(stack)
    requests = [
        booking_request(customer_phone=LONGER, notes="mine", request_id=str(uuid4())),
        booking_request(salon_id="salon-2", request_id=str(uuid4())),
    ]
    theirs = [await stack.booking.CreateBooking(request) for request in requests]
    await stack.booking.EraseCustomer(erase())
    for request, booking in zip(requests, theirs, strict=True):
        assert await stack.booking.CreateBooking(request) == booking
        wanted = pb.GetBookingByCodeRequest(salon_id=booking.salon_id, booking_code=booking.booking_code)
        assert await stack.booking.GetBookingByCode(wanted) == booking


async def test_erasing_an_unknown_customer_succeeds(stack: Stack) -> None:
    assert (await stack.booking.EraseCustomer(erase(salon_id="nobody"))).bookings == 0
    await known(stack)
    assert (await stack.booking.EraseCustomer(erase(phone_number="+4915100000000"))).bookings == 0
    assert (await stack.booking.EraseCustomer(erase(phone_number="0151 12345678"))).bookings == 2
    assert (await stack.booking.EraseCustomer(erase())).bookings == 0


@pytest.mark.parametrize("change", ["status", "resource_id"])
async def test_a_concurrent_change_leaves_no_trace_of_the_customer(stack: Stack, change: str) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(customer_name=NAME, resource_id="anna"))
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code, "reason": f"{NAME} called"}
    names["request_id"] = str(uuid4())
    cancel = pb.UpdateBookingStatusRequest(**names, status=pb.BOOKING_STATUS_CANCELLED)
    move = pb.RescheduleBookingRequest(**names, resource_id="ben")
    calls: dict[str, tuple[Any, Any]] = {
        "status": (stack.booking.UpdateBookingStatus, cancel),
        "resource_id": (stack.booking.RescheduleBooking, move),
    }
    row = f"INSERT INTO booking_requests VALUES ('{SALON}', '{names['request_id']}', '', '')"
    async with holding(stack.database_url, row) as other:
        rpc, request = calls[change]
        changing = asyncio.ensure_future(rpc(request))
        await waiting(other)
        erasing = asyncio.ensure_future(stack.booking.EraseCustomer(erase()))
        await waiting(other, 2)
    assert (await changing).customer_name == NAME
    assert (await erasing).bookings == 1
    assert rows(stack.database_url, "SELECT reason FROM booking_events WHERE reason != ''") == []
    assert rows(stack.database_url, "SELECT 1 FROM booking_requests WHERE reply != ''") == []
