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
    move = pb.RescheduleBookingRequest(**names, resource_id="ben", ignore_rules=True)
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


USER = "DE.13491208655302741918"


async def of_user(stack: Stack, booking: pb.Booking, user_id: str = USER, phone: str = "") -> None:
    """Make a booking one of a user_id, as if it had been created so; nothing has read it yet."""
    columns = f"customer_user_id = '{user_id}', customer_phone = '{phone}'"
    change = f"UPDATE bookings SET {columns} WHERE booking_id = '{booking.booking_id}' RETURNING 1"
    assert rows(stack.database_url, change)


async def test_a_customer_is_erased_by_user_id_or_phone_number_or_both(stack: Stack) -> None:
    await salon(stack)
    both, only_user, only_phone, other, walk_in = [
        await stack.booking.CreateBooking(booking_request(1_800_000_000 + hour * 3600, customer_name=NAME, notes="-"))
        for hour in range(5)
    ]
    await of_user(stack, both, phone=PHONE)
    await of_user(stack, only_user)
    await of_user(stack, other, user_id=USER + "9", phone=LONGER)
    await of_user(stack, walk_in, user_id="")
    for wanted, left in (
        ({"user_id": USER, "phone_number": ""}, [only_phone, other, walk_in]),
        ({"user_id": USER.lower()}, [other, walk_in]),
        ({"user_id": "DE.1", "phone_number": ""}, [other, walk_in]),
    ):
        await stack.booking.EraseCustomer(erase(**wanted))
        query = "SELECT booking_id::text FROM bookings WHERE customer_name <> '' ORDER BY start_ts"
        assert rows(stack.database_url, query) == [(booking.booking_id,) for booking in left], wanted
    assert (await stack.booking.EraseCustomer(erase(user_id=USER))).bookings == 0
    kept = "SELECT customer_phone, customer_user_id, notes FROM bookings WHERE customer_name = ''"
    assert rows(stack.database_url, kept) == [("", "", "")] * 3


async def test_nothing_of_a_customer_without_a_number_is_left(stack: Stack) -> None:
    await salon(stack)
    made = booking_request(customer_name=NAME, actor=f"user-{USER.lower()}", request_id="wamid.1")
    booking = await stack.booking.CreateBooking(made)
    await of_user(stack, booking)
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code}
    confirm: Fields = {"status": "BOOKING_STATUS_CONFIRMED", "reason": f"{NAME} wrote", "request_id": "wamid.2"}
    confirmed = await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, **confirm))
    assert confirmed.customer_user_id == USER
    time: Fields = {"start_time": booking.start_time, "end_time": booking.end_time, "request_id": "wamid.3"}
    blocked = await stack.booking.CreateTimeOff(pb.CreateTimeOffRequest(salon_id=SALON, **time))
    assert list(blocked.bookings) == [confirmed]
    request = pb.ListBookingsRequest(salon_id=SALON, customer_user_id=USER)
    assert list((await warm(stack.booking.ListBookings, request)).bookings) == [confirmed]
    assert (await stack.booking.EraseCustomer(erase(phone_number="", user_id=USER))).bookings == 1
    assert list((await stack.booking.ListBookings(request)).bookings) == []
    assert rows(stack.database_url, "SELECT actor, reason FROM booking_events") == [("", "")] * 2
    assert rows(stack.database_url, "SELECT FROM booking_requests WHERE reply <> ''") == []
    assert (await stack.booking.CreateBooking(made)).ByteSize() == 0
    changes = rows(
        stack.database_url, "SELECT type, revision FROM booking_changes WHERE booking_code <> '' ORDER BY seq"
    )
    assert changes[-1] == ("UPDATED", 3)


@pytest.mark.parametrize("fields", [{"phone_number": ""}, {"phone_number": "", "user_id": "a\0"}])
async def test_an_erasure_names_the_customer(stack: Stack, fields: Fields) -> None:
    await salon(stack)
    error = await failure(stack.booking.EraseCustomer(erase(**fields)))
    assert error.reason == "INVALID_FIELD"
    assert error.fields in (["phone_number"], ["user_id"])


async def test_an_actor_without_the_customers_ids_is_kept(stack: Stack) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(actor="bot-7"))
    await of_user(stack, booking)
    await stack.booking.EraseCustomer(erase(phone_number="", user_id=USER))
    assert rows(stack.database_url, "SELECT actor FROM booking_events") == [("bot-7",)]


async def test_a_number_stored_with_its_trunk_prefix_is_erased(stack: Stack) -> None:
    """Releases up to 0.3 stored +490151... as it was written."""
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(customer_name=NAME))
    await of_user(stack, booking, user_id="", phone="+49015112345678")
    assert (await stack.booking.EraseCustomer(erase())).bookings == 1
    assert rows(stack.database_url, "SELECT customer_phone, customer_name FROM bookings") == [("", "")]
