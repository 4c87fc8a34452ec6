"""Time off of a resource or of a whole salon, and the bookings that it collides with."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from libs.server.idempotency import _locks
from parlor.booking.v1 import booking_pb2 as pb
from services.booking.booking_write_queries import salon_time_lock
from tests.locks import holding, waiting
from tests.stack import SALON, Fields, Stack, booking_request, failure, fresh, rows, salon, walk, warm
from tests.test_resources import resource

START = 1_800_000_000
HOUR = 3600
LIST = pb.ListTimeOffRequest(salon_id=SALON)


def times(start: float, end: float) -> Fields:
    """Return a time from `start` to `end`, in hours after START."""
    return {
        name: Timestamp(seconds=START + int(hours * HOUR)) for name, hours in (("start_time", start), ("end_time", end))
    }


async def block(stack: Stack, start: float = 0, end: float = 1, **fields: Any) -> pb.CreateTimeOffResponse:
    request = pb.CreateTimeOffRequest(**{"salon_id": SALON, **times(start, end), **fields})
    return await stack.booking.CreateTimeOff(request)


async def book(stack: Stack, hour: float, **fields: Any) -> pb.Booking:
    return await stack.booking.CreateBooking(booking_request(START + int(hour * HOUR), **fields))


def unblock(time_off: pb.TimeOff, **fields: Any) -> pb.DeleteTimeOffRequest:
    return pb.DeleteTimeOffRequest(**{"salon_id": SALON, "time_off_id": time_off.time_off_id, **fields})


async def test_time_off_is_read_back_as_it_was_written(stack: Stack) -> None:
    await salon(stack)
    await resource(stack)
    annas = (await block(stack, 0, 1, resource_id="anna", reason="dentist 🦷")).time_off
    salons = (await block(stack, 2, 26)).time_off
    assert (annas.salon_id, annas.resource_id, annas.reason) == (SALON, "anna", "dentist 🦷")
    assert (annas.start_time.seconds, annas.end_time.seconds) == (START, START + HOUR)
    assert annas.HasField("create_time") and annas.time_off_id != salons.time_off_id
    assert (salons.resource_id, salons.reason) == ("", "")
    assert list((await stack.booking.ListTimeOff(LIST)).time_off) == [annas, salons]


async def test_the_bookings_in_the_time_are_returned_and_stay(stack: Stack) -> None:
    await salon(stack)
    await resource(stack)
    await resource(stack, "ben")
    made = [await book(stack, hour, resource_id="anna") for hour in range(4)]
    bens, nobodys = await book(stack, 1.5, resource_id="ben"), await book(stack, 1.25)
    await book(stack, 2.75, resource_id="ben", hold_duration={"seconds": 60})
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() WHERE hold_expires_at > now() RETURNING 1")
    cancel: Fields = {"booking_code": made[2].booking_code, "status": "BOOKING_STATUS_CANCELLED"}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(salon_id=SALON, **cancel))
    blocked = await block(stack, 1, 3, resource_id="anna")
    assert list(blocked.bookings) == [made[1]]
    assert list((await block(stack, 0.5, 3.5, resource_id="anna")).bookings) == [made[0], made[1], made[3]]
    assert list((await block(stack, 1, 3)).bookings) == [made[1], nobodys, bens]
    assert list((await block(stack, 4, 5)).bookings) == []
    read = pb.GetBookingByCodeRequest(salon_id=SALON, booking_code=made[1].booking_code)
    assert await stack.booking.GetBookingByCode(read) == made[1]


async def test_the_reply_has_the_first_200_bookings(stack: Stack) -> None:
    await salon(stack)
    query = f"""
        INSERT INTO bookings (salon_id, booking_code, customer_phone, start_ts, end_ts, status)
        SELECT '{SALON}', 'C' || n, '', to_timestamp({START} + n), to_timestamp({START} + n + 60), 'CONFIRMED'
        FROM generate_series(1, 210) AS n RETURNING 1"""
    rows(stack.database_url, query)
    blocked = await block(stack, 0, 1)
    assert [booking.booking_code for booking in blocked.bookings] == [f"C{number}" for number in range(1, 201)]


async def test_a_booking_that_is_being_made_is_not_missed(stack: Stack) -> None:
    await salon(stack)
    await resource(stack)
    [number] = _locks([], [salon_time_lock(SALON)]).params["shared"].strip("{}").split(",")
    for resource_id in ("", "anna"):
        async with holding(stack.database_url, f"SELECT pg_advisory_xact_lock_shared({number})") as other:
            blocking = asyncio.ensure_future(block(stack, 0, 1, resource_id=resource_id))
            await waiting(other)
            insert = f"""
                INSERT INTO bookings (salon_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status)
                VALUES ('{SALON}', 'C1{resource_id}', '', 'anna', to_timestamp({START}), to_timestamp({START + 60}),
                    'CONFIRMED')"""
            await other.execute(insert.encode())
            await other.commit()
        assert [booking.booking_code for booking in (await blocking).bookings][-1] == f"C1{resource_id}"
        rows(stack.database_url, "UPDATE bookings SET status = 'CANCELLED' RETURNING 1")


async def test_time_off_needs_its_salon_and_its_resource(stack: Stack) -> None:
    calls: list[Any] = [block(stack), block(stack, resource_id="anna"), stack.booking.ListTimeOff(LIST)]
    for call in calls:
        error = await failure(call)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")
    await salon(stack)
    await salon(stack, "salon-2")
    await resource(stack, "other", salon_id="salon-2")
    for resource_id in ("chiar-1", "other", "OTHER"):
        error = await failure(block(stack, resource_id=resource_id))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert rows(stack.database_url, "SELECT FROM time_off") == []
    assert rows(stack.database_url, "SELECT FROM booking_changes WHERE type = 'TIME_OFF'") == []


@pytest.mark.parametrize(
    "fields",
    [
        times(1, 1),
        times(2, 1),
        {**times(0, 1), "end_time": Timestamp(seconds=START, nanos=999)},
        {**times(0, 1), "end_time": None},
        {**times(0, 1), "end_time": Timestamp(seconds=253_370_764_800)},
    ],
)
async def test_an_invalid_time_is_refused(stack: Stack, fields: Fields) -> None:
    await salon(stack)
    error = await failure(block(stack, **fields))
    assert (error.reason, error.fields) == ("INVALID_FIELD", ["end_time"])


async def test_time_off_is_listed_by_resource_and_by_overlapping_time(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await resource(stack)
    await block(stack, 0, 9, salon_id="salon-2")
    made = [
        (await block(stack, *hours, resource_id=name)).time_off
        for hours, name in (((0, 4), "anna"), ((1, 2), ""), ((2, 3), "anna"), ((2, 8), ""))
    ]
    wanted: list[tuple[Fields, list[int]]] = [
        ({}, [0, 1, 2, 3]),
        ({"resource_id": "anna"}, [0, 2]),
        ({"resource_id": "ben"}, []),
        (times(2, 2.5), [0, 2, 3]),
        (times(3, 4), [0, 3]),
        (times(4, 9), [3]),
        (times(8, 9), []),
        ({"start_time": times(3, 4)["start_time"]}, [0, 3]),
        ({"end_time": times(0, 2)["end_time"]}, [0, 1]),
        ({"resource_id": "anna", **times(2, 3)}, [0, 2]),
    ]
    for filters, places in wanted:
        request = pb.ListTimeOffRequest(salon_id=SALON, **filters)
        for page_size in (1, 2, 0):
            listed = await walk(stack.booking.ListTimeOff, request, page_size)
            assert sorted(listed, key=made.index) == [made[place] for place in places]
            assert [each.start_time.seconds for each in listed] == sorted(each.start_time.seconds for each in listed)
    token = (await stack.booking.ListTimeOff(pb.ListTimeOffRequest(salon_id=SALON, page_size=1))).next_page_token
    other = pb.ListTimeOffRequest(salon_id=SALON, resource_id="anna", page_token=token)
    assert (await failure(stack.booking.ListTimeOff(other))).fields == ["page_token"]


async def test_a_write_to_time_off_is_in_the_next_list(stack: Stack) -> None:
    await salon(stack)
    await warm(stack.booking.ListTimeOff, LIST)
    time_off = (await block(stack)).time_off
    assert list((await fresh(stack.booking.ListTimeOff, LIST)).time_off) == [time_off]
    await warm(stack.booking.ListTimeOff, LIST)
    assert (await stack.booking.DeleteTimeOff(unblock(time_off))).ByteSize() == 0
    assert list((await fresh(stack.booking.ListTimeOff, LIST)).time_off) == []


async def test_time_off_is_deleted_once(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    time_off = (await block(stack)).time_off
    for fields in ({"salon_id": "salon-2"}, {"salon_id": "nobody"}, {"time_off_id": str(uuid4())}):
        error = await failure(stack.booking.DeleteTimeOff(unblock(time_off, **fields)))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "TIME_OFF_NOT_FOUND")
    named = unblock(time_off, request_id="back from holiday")
    for _ in range(2):
        await stack.booking.DeleteTimeOff(named)
    assert (await failure(stack.booking.DeleteTimeOff(unblock(time_off)))).reason == "TIME_OFF_NOT_FOUND"


async def test_each_write_to_time_off_is_a_change(stack: Stack) -> None:
    await salon(stack)
    await resource(stack)
    annas, salons = (await block(stack, resource_id="anna")).time_off, (await block(stack)).time_off
    await stack.booking.DeleteTimeOff(unblock(annas))
    query = """
        SELECT salon_id, resource_id, time_off_id::text FROM booking_changes WHERE type = 'TIME_OFF'
        ORDER BY xact_id, seq"""
    changes = [(SALON, "anna", annas.time_off_id), (SALON, None, salons.time_off_id)]
    assert rows(stack.database_url, query) == [*changes, changes[0]]
