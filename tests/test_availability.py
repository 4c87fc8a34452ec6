"""SearchAvailability: which slots it offers, in pages, also where the clock changes."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as pb
from tests.calendars import DAY, HOUR, MINUTE, Hours
from tests.searches import MONDAY, NINE, clock, found, off, opened, request, stack
from tests.stack import SALON, Fields, Stack, booking_request, executed, failure, salon, walk
from tests.test_resources import resource

__all__ = ["clock", "stack"]


_numbers = count()
# Zone, hours of one day or two, and the expected local starts of half-hour slots.
CHANGES = [
    ("Europe/Berlin", date(2026, 3, 29), [(60, 240)], "01:00+01:00 01:30+01:00 03:00+02:00 03:30+02:00"),
    (
        "Europe/Berlin",
        date(2026, 10, 25),
        [(60, 210)],
        "01:00+02:00 01:30+02:00 02:00+02:00 02:30+02:00 02:00+01:00 02:30+01:00 03:00+01:00",
    ),
    ("Europe/Berlin", date(2026, 10, 25), [(135, 165)], "02:15+02:00 02:15+01:00"),
    ("America/Sao_Paulo", date(2017, 10, 15), [(0, 120)], "01:00-02:00 01:30-02:00"),
    (
        "America/Sao_Paulo",
        date(2018, 2, 17),
        [(1350, 1440)],
        "22:30-02:00 23:00-02:00 23:30-02:00 23:00-03:00 23:30-03:00",
    ),
    ("Australia/Lord_Howe", date(2026, 10, 4), [(90, 210)], "01:30+10:30 02:30+11:00 03:00+11:00"),
    ("Australia/Lord_Howe", date(2026, 4, 5), [(60, 150)], "01:00+11:00 01:30+11:00 01:30+10:30 02:00+10:30"),
    ("Asia/Kathmandu", date(1986, 1, 1), [(0, 75)], "00:15+05:45 00:45+05:45"),
    ("Asia/Kathmandu", date(2026, 10, 25), [(540, 630)], "09:00+05:45 09:30+05:45 10:00+05:45"),
]


async def test_a_change_of_the_clock_neither_loses_nor_invents_a_slot(stack: Stack) -> None:
    for zone, day, times, starts in CHANGES:
        salon_id = f"salon-{next(_numbers)}"
        await salon(stack, salon_id, time_zone=zone, special_hours=Hours(dates={day: times}).special_hours())
        noon = int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp())
        slots = await found(stack, request(noon - 2 * DAY, noon + 2 * DAY, 30, salon_id, resource_ids=["anna"]))
        walls = [
            datetime.fromtimestamp(start, ZoneInfo(zone)).isoformat()[11:].replace(":00+", "+") for start, _ in slots
        ]
        assert [wall[:5] + wall[-6:] for wall in walls] == starts.split(), (zone, day)


async def test_a_search_covers_the_given_resources_or_all_active_ones(stack: Stack) -> None:
    await opened(stack, "ben", "anna")
    await resource(stack, "cleo", active=False)
    morning = (NINE, NINE + HOUR)
    assert await found(stack, request(*morning)) == [(NINE, "anna"), (NINE, "ben")]
    named = ["ben", "cleo", "ben"]
    assert await found(stack, request(*morning, resource_ids=named)) == [(NINE, "ben")]
    error = await failure(found(stack, request(*morning, resource_ids=["ben", "chiar-1"])))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_search_takes_one_statement_and_is_not_cached(stack: Stack) -> None:
    await opened(stack, *(f"chair-{number}" for number in range(10)))
    before = await executed(stack, "booking")
    assert len(await found(stack, request(MONDAY, MONDAY + 7 * DAY))) == 7 * 3 * 10
    assert await executed(stack, "booking") == before + 1
    await stack.booking.CreateBooking(booking_request(NINE, resource_id="chair-0"))
    assert len(await found(stack, request(MONDAY, MONDAY + 7 * DAY))) == 7 * 3 * 10 - 1


async def test_a_booking_blocks_with_its_buffers_to_the_microsecond(stack: Stack) -> None:
    await opened(stack, "anna")
    start, end = Timestamp(seconds=NINE + HOUR, nanos=500_000), Timestamp(seconds=NINE + 90 * MINUTE, nanos=1000)
    await stack.booking.CreateBooking(booking_request(start_time=start, end_time=end, resource_id="anna"))

    async def minutes(**fields: Any) -> list[int]:
        return [(at - NINE) // MINUTE for at, _ in await found(stack, request(MONDAY, MONDAY + DAY, 30, **fields))]

    assert await minutes() == [0, 30, 120, 150]
    assert await minutes(buffer_before=30 * MINUTE) == [0, 30, 150]
    assert await minutes(buffer_after=MINUTE) == [0, 120, 150]
    assert (await minutes(step=5 * MINUTE))[:9] == [0, 5, 10, 15, 20, 25, 30, 95, 100]


async def test_notice_and_horizon_count_from_now(stack: Stack, clock: list[int]) -> None:
    await opened(stack, "anna")
    clock[0] = NINE + 1

    async def hours(**fields: Any) -> list[int]:
        return [(at - NINE) // HOUR for at, _ in await found(stack, request(MONDAY, MONDAY + 2 * DAY, **fields))]

    assert await hours() == [1, 2, 24, 25, 26]
    assert await hours(minimum_notice=HOUR - 1) == [1, 2, 24, 25, 26]
    assert await hours(minimum_notice=HOUR) == [2, 24, 25, 26]
    assert await hours(horizon=2 * HOUR - 2) == [1]
    assert await hours(horizon=2 * HOUR - 1) == [1, 2]
    assert await hours(horizon=0) == await hours(minimum_notice=366 * DAY) == []


async def test_pages_hold_each_slot_once(stack: Stack) -> None:
    await opened(stack, "anna", "ben", "cleo")
    search = request(MONDAY, MONDAY + 2 * DAY)
    slots = list((await stack.booking.SearchAvailability(search)).slots)
    assert len(slots) == 18
    for page_size in (1, 2, 5, 18, 19, 20_000):
        assert await walk(stack.booking.SearchAvailability, search, page_size) == slots
    search.page_size = 1
    search.page_token = (await stack.booking.SearchAvailability(search)).next_page_token
    search.buffer_after.seconds = 60
    assert (await failure(stack.booking.SearchAvailability(search))).fields == ["page_token"]


async def test_a_page_has_at_most_10000_slots(stack: Stack) -> None:
    await opened(stack, "anna", hours=(0, 1440))
    search = request(MONDAY, MONDAY + 7 * DAY, 1, resource_ids=["anna"])
    reply = await stack.booking.SearchAvailability(search)
    search.page_token = reply.next_page_token
    rest = await stack.booking.SearchAvailability(search)
    assert (len(reply.slots), len(rest.slots), rest.next_page_token) == (10_000, 80, "")


async def test_a_salon_that_never_closes_has_one_unbroken_grid(stack: Stack) -> None:
    await opened(stack, "anna", hours=(0, 1440), time_zone="Asia/Kathmandu")
    beginning = -DAY - 5 * HOUR - 30 * MINUTE  # midnight of 1969-12-31 there
    for start in (0, MONDAY, MONDAY + 7 * MINUTE, 4_000_000_000):
        slots = await found(stack, request(start, start + DAY, 31, resource_ids=["anna"], step=31 * MINUTE))
        assert len(slots) >= 45
        assert all((at - beginning) % (31 * MINUTE) == 0 for at, _ in slots)


def wrong() -> Iterator[tuple[pb.SearchAvailabilityRequest, str]]:
    for field in ("duration", "step", "buffer_before", "buffer_after", "minimum_notice", "horizon"):
        for value in (Duration(seconds=60, nanos=1), Duration(seconds=-1), Duration(seconds=400_000_000)):
            search = request(MONDAY, MONDAY + DAY)
            getattr(search, field).CopyFrom(value)
            yield search, field
    yield request(MONDAY, MONDAY), "end_time"
    yield request(MONDAY, MONDAY + 62 * DAY + 1), "end_time"
    yield request(MONDAY, MONDAY + DAY, resource_ids=["a b"]), "resource_ids[0]"


async def test_an_invalid_search_is_refused(stack: Stack) -> None:
    assert (await failure(found(stack, request(MONDAY, MONDAY + DAY)))).reason == "SALON_NOT_FOUND"
    for search, field in wrong():
        error = await failure(stack.booking.SearchAvailability(search))
        assert (error.reason, error.fields) == ("INVALID_FIELD", [field]), search


async def test_a_booking_that_is_to_be_moved_does_not_block_its_own_time(stack: Stack) -> None:
    await opened(stack, "anna", booking_rules={"buffer_after": {"seconds": 1800}})
    own, other = [
        await stack.booking.CreateBooking(booking_request(start, resource_id="anna", ignore_rules=False))
        for start in (NINE, NINE + 90 * MINUTE)
    ]
    search = request(MONDAY, MONDAY + DAY, 30)
    assert await found(stack, search) == []
    for booking, minutes in ((own, [0, 30]), (other, [90, 120, 150])):
        search.excluding_booking_code = booking.booking_code.lower()
        assert [(at - NINE) // MINUTE for at, _ in await found(stack, search)] == minutes
    search.excluding_booking_code = "NOBODY"
    error = await failure(stack.booking.SearchAvailability(search))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "BOOKING_NOT_FOUND")
    await salon(stack, "salon-2")
    search.excluding_booking_code, search.salon_id = own.booking_code, "salon-2"
    assert (await failure(stack.booking.SearchAvailability(search))).reason == "BOOKING_NOT_FOUND"


async def test_a_search_for_a_service_offers_its_duration_buffers_and_resources(stack: Stack) -> None:
    await opened(stack, "anna", "ben", "cleo", booking_rules={"buffer_before": {"seconds": 3600}})
    named: Fields = {"salon_id": SALON, "service_id": "cut", "name": "Cut", "resource_ids": ["anna", "ben"]}
    lasts: Fields = {"duration": {"seconds": 45 * MINUTE}, "buffer_after": {"seconds": 15 * MINUTE}}
    await stack.booking.UpsertService(pb.UpsertServiceRequest(**named, **lasts, buffer_before=Duration()))
    await stack.booking.CreateBooking(booking_request(NINE + HOUR, resource_id="ben"))

    async def slots(**fields: Any) -> list[tuple[int, int, str]]:
        search = request(NINE, NINE + 3 * HOUR, service_id="cut", **fields)
        if "minutes" not in fields:
            search.ClearField("duration")
        reply = await stack.booking.SearchAvailability(search)
        return [
            (
                (slot.start_time.seconds - NINE) // MINUTE,
                slot.end_time.seconds - slot.start_time.seconds,
                slot.resource_id,
            )
            for slot in reply.slots
        ]

    length = 45 * MINUTE
    annas, bens = [(at, length, "anna") for at in (0, 45, 90, 135)], [(0, length, "ben"), (135, length, "ben")]
    assert await slots() == sorted([*annas, *bens])
    assert await slots(resource_ids=["ben", "cleo"]) == bens
    assert await slots(resource_ids=["cleo"]) == []
    assert await slots(resource_ids=["ben"], buffer_after=30 * MINUTE) == [(135, length, "ben")]
    assert await slots(minutes=60, resource_ids=["ben"]) == [(120, HOUR, "ben")]
    await stack.booking.UpsertService(pb.UpsertServiceRequest(**named, **lasts, active=False))
    assert await slots() == []
    error = await failure(stack.booking.SearchAvailability(request(NINE, NINE + HOUR, service_id="cat")))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


async def test_a_search_of_the_past_finds_nothing(stack: Stack, clock: list[int]) -> None:
    await opened(stack, "anna")
    clock[0] = MONDAY + 2 * DAY
    await off(stack, MONDAY, MONDAY + DAY)
    for fields in ({}, {"buffer_before": HOUR}, {"resource_ids": ["anna"]}):
        assert await found(stack, request(MONDAY, MONDAY + DAY, **fields)) == []
