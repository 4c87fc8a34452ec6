"""SearchAvailability offers exactly the slots of its definition, across changes of the clock."""

import json
import os
import struct
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import count, islice
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, given, settings

from parlor.booking.v1 import booking_pb2 as pb
from services.booking import availability, rules
from services.booking import reasons as service_reasons
from services.booking.availability_queries import Availability, Bookable
from services.booking.rules import HoursJson, Place
from tests.calendars import DAY, HOUR, MINUTE, Case, Hours, cases, is_asked_for, is_free, offered, on_grid
from tests.calendars import reasons as reasons_of
from tests.stack import QUIET, SALON, Fields, Stack, booking_request, executed, failure, rows, running, salon, walk
from tests.test_resources import resource

RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
ORACLE_EXAMPLES = int(os.environ.get("ORACLE_EXAMPLES", "300"))  # 20,000 in a long run
EVERY_DAY = range(7)
MONDAY = 1_800_000_000 - 1_800_000_000 % (7 * DAY) + 4 * DAY
NINE = MONDAY + 9 * HOUR
_numbers = count()


@pytest.fixture
def clock() -> list[int]:
    """The time of the booking service's clock, in s since 1970."""
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


def jsonb(value: Any) -> bytes:
    """Return a value as Postgres sends it."""
    return b"\1" + json.dumps(value).encode()


def merged(times: Iterable[tuple[int, int]]) -> bytes:
    """Return times, merged and sorted, as the statement of a search returns them."""
    found: list[list[int]] = []
    for begin, until in sorted(times):
        if found and begin <= found[-1][1]:
            found[-1][1] = max(found[-1][1], until)
        else:
            found.append([begin, until])
    return b"".join(struct.pack(">qq", *times) for times in found)


def hours_of(hours: Hours) -> HoursJson:
    """Return hours as the database has them."""
    return HoursJson(jsonb(hours.opening_hours()), jsonb(hours.special_hours()))


def booking_rules(case: Case) -> Fields:
    """Return the BookingRules of a case's salon, without buffers."""
    found: Fields = {"min_notice": {"seconds": case.min_notice}} if case.min_notice else {}
    return found | ({} if case.max_advance is None else {"max_advance": {"seconds": case.max_advance}})


def availability_of(case: Case) -> Availability:
    """Return what the statement of a search reads."""
    resources = {}
    for name in case.resources:
        busy = [(booked.start - booked.before, booked.end + booked.after) for booked in case.busy[name]]
        may = name in case.doing - case.inactive
        resources[name] = Bookable(
            may, hours_of(case.resources[name]), merged(busy), merged(case.time_off.get(name, []))
        )
    return Availability(
        zone=ZoneInfo(case.zone),
        hours=hours_of(case.salon),
        rules=rules.rules_of(jsonb(booking_rules(case))),
        duration=case.duration,
        buffers=(max(case.before, case.own_before), max(case.after, case.own_after)),
        found_excluded=True,
        time_off=merged(case.time_off.get("", [])),
        resources=resources,
    )


def search_of(case: Case, salon_id: str = SALON, **fields: Any) -> pb.SearchAvailabilityRequest:
    """Return the request of a case's search."""
    seconds: Fields = {"step": case.step, "buffer_before": case.before, "buffer_after": case.after}
    bounds: Fields = {"minimum_notice": case.notice, "horizon": case.horizon}
    return request(case.start, case.end, case.duration // MINUTE, salon_id, **seconds, **bounds, **fields)


def computed(case: Case, most: int = 100_000) -> list[tuple[int, str]]:
    """Return the slots that the service's functions find for a case."""
    read = availability_of(case)
    _, query = availability.slot_queries(search_of(case), datetime.fromtimestamp(case.now, UTC), read)
    free = finish(availability.free_by_start(read, query, most))
    return [(start, name) for start in sorted(free) for name in free[start]]


def finish(steps: Generator[None, None, Any]) -> Any:
    """Return what a computation in steps returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def accepted(case: Case, name: str, start: int) -> bool:
    """Return whether the service's functions accept a booking."""
    first, last, now = [datetime.fromtimestamp(at, UTC) for at in (start, start + case.duration, case.now)]
    time_off = [*case.time_off.get("", []), *case.time_off.get(name, [])]
    of_salon, own = hours_of(case.salon), hours_of(case.resources[name])
    hours = rules.salon_calendar(of_salon), rules.resource_calendar(of_salon, own)
    place = Place(ZoneInfo(case.zone), *hours, time_off, name not in case.inactive)
    refused = rules.refusal(first, last, now, rules.rules_of(jsonb(booking_rules(case))), place)
    return refused is None and name in case.doing and is_free(case, name, start, case.own_before, case.own_after)


@settings(RANDOM, max_examples=ORACLE_EXAMPLES)
@given(case=cases())
def test_offered_slots_are_those_of_the_definition_checked_minute_by_minute(case: Case) -> None:
    slots = offered(case)
    assert computed(case) == slots
    some = computed(case, len(slots) // 2)
    assert len(slots) // 2 <= len(some) <= len(slots) // 2 + 2
    assert some == slots[: len(some)]
    wanted = [(start, name) for start, name, _ in on_grid(case) if is_asked_for(case, name, start)]
    assert sorted((start, name) for start, name in wanted if accepted(case, name, start)) == slots


@settings(RANDOM, max_examples=ORACLE_EXAMPLES // 2)
@given(case=cases())
def test_the_reasons_of_an_empty_search_are_those_of_their_definition(case: Case) -> None:
    if offered(case):
        return
    read = availability_of(case)
    queries = availability.slot_queries(search_of(case), datetime.fromtimestamp(case.now, UTC), read)
    reply = pb.SearchAvailabilityResponse.FromString(finish(service_reasons.response(read, *queries)))
    computed_reasons = [
        (date(each.date.year, each.date.month, each.date.day), pb.UnavailableReason.Name(each.reason))
        for each in reply.reasons
    ]
    assert computed_reasons == [(day, f"UNAVAILABLE_REASON_{name}") for day, name in reasons_of(case)]


async def store(stack: Stack, case: Case, *, service: bool) -> str:
    """Write a case's salon, resources and bookings; return the salon's id."""
    salon_id = f"salon-{next(_numbers)}"
    hours: Fields = {"opening_hours": case.salon.opening_hours(), "special_hours": case.salon.special_hours()}
    buffers: Fields = {"buffer_before": {"seconds": case.own_before}, "buffer_after": {"seconds": case.own_after}}
    all_rules = booking_rules(case) | ({} if service else buffers)
    await salon(stack, salon_id, resources=(), time_zone=case.zone, booking_rules=all_rules, **hours)
    for name, own in case.resources.items():
        fields: Fields = {"working_hours": own.opening_hours(), "special_hours": own.special_hours()}
        await resource(stack, name, salon_id=salon_id, active=name not in case.inactive, **fields)
        for booked in case.busy[name]:
            query = f"""
                INSERT INTO bookings (salon_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status,
                    buffer_before, buffer_after)
                VALUES ('{salon_id}', 'B{next(_numbers)}', '', '{name}', to_timestamp({booked.start}),
                    to_timestamp({booked.end}), 'CONFIRMED', {booked.before}, {booked.after}) RETURNING 1"""
            rows(stack.database_url, query)
    for of, all_times in case.time_off.items():
        for begin, until in all_times:
            times: Fields = {"start_time": {"seconds": begin}, "end_time": {"seconds": until}}
            await stack.booking.CreateTimeOff(pb.CreateTimeOffRequest(salon_id=salon_id, resource_id=of, **times))
    if service:
        named: Fields = {"salon_id": salon_id, "service_id": "cut", "name": "Cut", "resource_ids": sorted(case.doing)}
        duration: Fields = {"duration": {"seconds": case.duration}}
        await stack.booking.UpsertService(pb.UpsertServiceRequest(**named, **duration, **buffers))
    return salon_id


async def is_booked(stack: Stack, salon_id: str, case: Case, start: int, name: str, **fields: Any) -> bool:
    """Return whether a booking can be made; cancel it."""
    times: Fields = {"start_time": {"seconds": start}, "end_time": {"seconds": start + case.duration}}
    wanted = booking_request(salon_id=salon_id, resource_id=name, ignore_rules=False, **times, **fields)
    try:
        code = (await stack.booking.CreateBooking(wanted)).booking_code
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        return False
    cancel: Fields = {"salon_id": salon_id, "booking_code": code, "status": "BOOKING_STATUS_CANCELLED"}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**cancel))
    return True


@settings(RANDOM, max_examples=40, phases=[Phase.generate])
@given(case=cases())
async def test_exactly_the_offered_slots_can_be_booked(stack: Stack, clock: list[int], case: Case) -> None:
    clock[0] = 0
    service = case.doing != set(case.resources) or case.start % 2 == 0
    salon_id = await store(stack, case, service=service)
    clock[0] = case.now
    named: Fields = {"service_id": "cut"} if service else {}
    slots = await found(stack, search_of(case, salon_id, resource_ids=list(case.resources), **named))
    assert slots == offered(case)
    for start, name in islice(slots, 0, None, 1 + len(slots) // 12):
        assert await is_booked(stack, salon_id, case, start, name, **named)
    others = [(start, name) for start, name, _ in on_grid(case) if is_asked_for(case, name, start)]
    others = sorted({*others} - {*slots})
    for start, name in islice(others, 0, None, 1 + len(others) // 12):
        assert not await is_booked(stack, salon_id, case, start, name, **named)


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
    await salon(stack, **{"resources": (), "time_zone": "UTC", "opening_hours": week, **fields})
    for name in names:
        await resource(stack, name)


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


async def reasons(stack: Stack, start: int = MONDAY, days: int = 1, **fields: Any) -> list[str]:
    """Return the reasons of a search without slots, by their days, which must be those of the search."""
    reply = await stack.booking.SearchAvailability(request(start, start + days * DAY, **fields))
    assert (list(reply.slots), reply.next_page_token) == ([], "")
    first = datetime.fromtimestamp(start, UTC).date()
    assert [date(each.date.year, each.date.month, each.date.day) for each in reply.reasons] == [
        first + timedelta(days=day) for day in range(days)
    ]
    names = [pb.UnavailableReason.Name(each.reason) for each in reply.reasons]
    return [name.removeprefix("UNAVAILABLE_REASON_") for name in names]


async def off(stack: Stack, start: int, end: int, resource_id: str = "") -> None:
    times: Fields = {"start_time": {"seconds": start}, "end_time": {"seconds": end}}
    await stack.booking.CreateTimeOff(pb.CreateTimeOffRequest(salon_id=SALON, resource_id=resource_id, **times))


async def test_each_day_without_a_slot_has_its_reason(stack: Stack, clock: list[int]) -> None:
    weekdays = Hours({day: [(540, 720)] for day in range(5)}).opening_hours()
    await opened(stack, "anna", "ben", opening_hours=weekdays, booking_rules={"max_advance": {"seconds": 3 * DAY}})
    await resource(stack, "ben", active=False)
    clock[0] = MONDAY - 2 * DAY
    for start in range(NINE, NINE + 3 * HOUR, HOUR):
        await stack.booking.CreateBooking(booking_request(start, resource_id="anna"))
    clock[0] = NINE
    await off(stack, MONDAY + DAY, MONDAY + DAY + 11 * HOUR + 1, "anna")
    await off(stack, MONDAY + 2 * DAY, MONDAY + 3 * DAY)
    expected = ["CLOSED", "TOO_SOON", "FULLY_BOOKED", "RESOURCE_OFF", "CLOSED"]
    assert await reasons(stack, MONDAY - DAY, 1, minutes=120) == expected[:1]
    assert await reasons(stack, MONDAY - 3 * DAY, 3) == ["TOO_SOON", "CLOSED", "CLOSED"]
    assert await reasons(stack, MONDAY, 3, minutes=90) == expected[2:]
    assert await reasons(stack, MONDAY + 4 * DAY, 3) == ["TOO_LATE", "CLOSED", "CLOSED"]
    assert await reasons(stack, MONDAY - 7 * DAY, 8) == [*(["TOO_SOON"] * 5), "CLOSED", "CLOSED", "FULLY_BOOKED"]


async def test_the_reasons_of_rules_hours_and_resources(stack: Stack, clock: list[int]) -> None:
    await opened(stack)
    assert await reasons(stack) == ["NO_RESOURCE"]
    await resource(stack, "anna", active=False)
    assert await reasons(stack) == await reasons(stack, resource_ids=["anna"]) == ["NO_RESOURCE"]
    tuesdays: Any = [{"day_of_week": 2, "open_time": {"hours": 9}, "close_time": {"hours": 12}}]
    await resource(stack, "anna", working_hours=tuesdays)
    assert await reasons(stack) == ["RESOURCE_OFF"]
    await resource(stack, "anna")
    assert await reasons(stack, minutes=181) == ["CLOSED"]
    clock[0] = NINE + 2 * HOUR + 1
    assert await reasons(stack) == ["TOO_SOON"]
    clock[0] = NINE
    assert await reasons(stack, minimum_notice=3 * HOUR) == ["TOO_SOON"]
    clock[0] = NINE - HOUR
    assert await reasons(stack, horizon=HOUR - 1) == ["TOO_LATE"]
    await opened(stack, booking_rules={"min_notice": {"seconds": 10 * DAY}})
    assert await reasons(stack) == ["TOO_SOON"]
    await opened(stack, booking_rules={"max_advance": {"seconds": 0}})
    assert await reasons(stack) == ["TOO_LATE"]
    closed = Hours(dates={datetime.fromtimestamp(MONDAY, UTC).date(): []}).special_hours()
    await opened(stack, special_hours=closed)
    assert await reasons(stack) == ["CLOSED"]
    await opened(stack)
    reply = await stack.booking.SearchAvailability(request(MONDAY, MONDAY + DAY, page_size=2))
    assert list(reply.reasons) == [] and len(reply.slots) == 2
    await stack.booking.CreateBooking(booking_request(NINE + 2 * HOUR, resource_id="anna"))
    last = request(MONDAY, MONDAY + DAY, page_size=2, page_token=reply.next_page_token)
    reply = await stack.booking.SearchAvailability(last)
    assert (list(reply.slots), list(reply.reasons)) == ([], [])


async def test_the_days_of_reasons_are_those_of_the_salons_calendar(stack: Stack, clock: list[int]) -> None:
    await opened(stack, time_zone="Pacific/Apia", opening_hours=[])
    # The 30th of December 2011 did not exist in Samoa.
    start = int(datetime(2011, 12, 29, 10, tzinfo=UTC).timestamp())  # midnight there
    reply = await stack.booking.SearchAvailability(request(start, start + 2 * DAY))
    assert [(each.date.month, each.date.day) for each in reply.reasons] == [(12, 29), (12, 31)]


async def test_a_search_of_the_past_finds_nothing(stack: Stack, clock: list[int]) -> None:
    await opened(stack, "anna")
    clock[0] = MONDAY + 2 * DAY
    await off(stack, MONDAY, MONDAY + DAY)
    for fields in ({}, {"buffer_before": HOUR}, {"resource_ids": ["anna"]}):
        assert await found(stack, request(MONDAY, MONDAY + DAY, **fields)) == []
