"""SearchAvailability offers exactly the slots of its definition, across changes of the clock."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import count, islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, given, settings

from parlor.booking.v1 import booking_pb2 as pb
from services.booking import availability
from services.booking.availability import SlotQuery
from tests.calendars import DAY, HOUR, MINUTE, Case, Hours, cases, offered
from tests.stack import QUIET, SALON, Fields, Stack, booking_request, executed, failure, running, salon, walk
from tests.test_resources import resource

RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
EVERY_DAY = range(7)
MONDAY = 1_800_000_000 - 1_800_000_000 % (7 * DAY) + 4 * DAY
NINE = MONDAY + 9 * HOUR
_numbers = count()


@pytest.fixture
def clock() -> list[int]:
    """The time of the booking service, in s since 1970."""
    return [0]


@pytest.fixture
async def stack(database_url: str, redis_url: str, clock: list[int]) -> Any:
    """The three services; the booking service uses `clock`, and no service sends anything in the background."""
    async with running(database_url, redis_url, now=lambda: datetime.fromtimestamp(clock[0], UTC), **QUIET) as stack:
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


def computed(case: Case, most: int = 100_000) -> list[tuple[int, str]]:
    """Return the slots that the functions of the service find for a case."""
    last = case.end - case.duration
    if case.horizon is not None:
        last = min(last, case.now + case.horizon)
    first = max(case.start, case.now + case.notice)
    query = SlotQuery(first, last, case.duration, case.step, case.before, case.after)
    rows: list[Any] = [(None, case.zone, case.salon.opening_hours(), case.salon.special_hours(), None, None)]
    for name, own in case.resources.items():
        begins, ends = zip(*case.busy[name], strict=True) if case.busy[name] else (None, None)
        rows.append((name, "", own.opening_hours(), own.special_hours(), begins, ends))
    steps = availability.free_by_start(rows, [], query, most)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            free = end.value
            return [(start, name) for start in sorted(free) for name in free[start]]


@settings(RANDOM, max_examples=150)
@given(case=cases())
def test_offered_slots_are_those_of_the_definition_checked_minute_by_minute(case: Case) -> None:
    slots = offered(case)
    assert computed(case) == slots
    some = computed(case, len(slots) // 2)
    assert len(slots) // 2 <= len(some) <= len(slots) // 2 + 2
    assert some == slots[: len(some)]


async def store(stack: Stack, case: Case) -> str:
    """Write the salon, the resources and the bookings of a case; return the salon's ID."""
    salon_id = f"salon-{next(_numbers)}"
    hours: Fields = {"opening_hours": case.salon.opening_hours(), "special_hours": case.salon.special_hours()}
    await salon(stack, salon_id, time_zone=case.zone, **hours)
    for name, own in case.resources.items():
        fields: Fields = {"working_hours": own.opening_hours(), "special_hours": own.special_hours()}
        await resource(stack, name, salon_id=salon_id, **fields)
        for begin, end in case.busy[name]:
            times: Fields = {"start_time": {"seconds": begin}, "end_time": {"seconds": end}}
            await stack.booking.CreateBooking(booking_request(salon_id=salon_id, resource_id=name, **times))
    return salon_id


@settings(RANDOM, max_examples=20, phases=[Phase.generate])
@given(case=cases())
async def test_offered_slots_can_be_booked(stack: Stack, clock: list[int], case: Case) -> None:
    salon_id = await store(stack, case)
    clock[0] = case.now
    seconds: Fields = {"step": case.step, "buffer_before": case.before, "buffer_after": case.after}
    bounds: Fields = {"minimum_notice": case.notice, "horizon": case.horizon}
    search = request(case.start, case.end, case.duration // MINUTE, salon_id, **seconds, **bounds)
    slots = await found(stack, search)
    assert slots == offered(case)
    for start, name in islice(slots, 0, None, 1 + len(slots) // 12):
        times: Fields = {"start_time": {"seconds": start}, "end_time": {"seconds": start + case.duration}}
        wanted = booking_request(salon_id=salon_id, resource_id=name, **times)
        code = (await stack.booking.CreateBooking(wanted)).booking_code
        cancel: Fields = {"salon_id": salon_id, "booking_code": code, "status": "BOOKING_STATUS_CANCELLED"}
        await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**cancel))


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


async def opened(stack: Stack, *names: str, hours: tuple[int, int] = (9 * 60, 12 * 60), **fields: Any) -> None:
    """Create a salon in UTC that is open every day, and its resources."""
    week = Hours({day: [hours] for day in EVERY_DAY}).opening_hours()
    await salon(stack, **{"time_zone": "UTC", "opening_hours": week, **fields})
    for name in names:
        await resource(stack, name)


async def test_a_search_covers_the_given_resources_or_all_active_ones(stack: Stack) -> None:
    await opened(stack, "ben", "anna")
    await resource(stack, "cleo", active=False)
    morning = (NINE, NINE + HOUR)
    assert await found(stack, request(*morning)) == [(NINE, "anna"), (NINE, "ben")]
    named = ["new", "ben", "cleo", "ben"]
    assert await found(stack, request(*morning, resource_ids=named)) == [(NINE, "ben"), (NINE, "new")]


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
    await opened(stack, hours=(0, 1440))
    search = request(MONDAY, MONDAY + 7 * DAY, 1, resource_ids=["anna"])
    reply = await stack.booking.SearchAvailability(search)
    search.page_token = reply.next_page_token
    rest = await stack.booking.SearchAvailability(search)
    assert (len(reply.slots), len(rest.slots), rest.next_page_token) == (10_000, 80, "")


async def test_a_salon_that_never_closes_has_one_unbroken_grid(stack: Stack) -> None:
    await opened(stack, hours=(0, 1440), time_zone="Asia/Kathmandu")
    beginning = -DAY - 5 * HOUR - 30 * MINUTE  # local midnight of 1969-12-31
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
