"""Bookings keep the hours, time off and the rules of their salon; `ignore_rules` skips all but the overlap."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import PreconditionFailure

from parlor.booking.v1 import booking_pb2 as pb
from tests.calendars import DAY, HOUR, MINUTE, Hours
from tests.stack import PHONE, SALON, Failure, Fields, Stack, booking_request, failure, rows, running, salon
from tests.test_resources import resource
from tests.test_services import service

MONDAY = 1_800_000_000 - 1_800_000_000 % (7 * DAY) + 4 * DAY
NOW = MONDAY + 10 * HOUR
WORKDAYS = Hours({day: [(9 * 60, 18 * 60)] for day in range(6)}).opening_hours()
ALWAYS = Hours({day: [(0, 1440)] for day in range(7)}).opening_hours()
OTHER_PHONE = "+4915112345679"


@pytest.fixture
def clock() -> list[int]:
    """The time of the booking service's clock, in s since 1970."""
    return [NOW]


@pytest.fixture
async def stack(database_url: str, redis_url: str, clock: list[int]) -> Any:
    """The three services; the booking service uses `clock`."""
    async with running(database_url, redis_url, now=lambda: datetime.fromtimestamp(clock[0], UTC)) as stack:
        yield stack


def at(hour: float) -> Timestamp:
    """Return a time by its hours since Monday, 0:00 UTC."""
    return Timestamp(seconds=MONDAY + round(hour * HOUR))


async def opened(stack: Stack, rules: Fields | None = None, **fields: Any) -> None:
    """Create a salon in UTC that is open from Monday to Saturday, 9 to 18 h, with rules in s."""
    booking_rules = {
        name: value if isinstance(value, bool) else Duration(seconds=value) for name, value in (rules or {}).items()
    }
    values: Fields = {"time_zone": "UTC", "opening_hours": WORKDAYS, "booking_rules": booking_rules, **fields}
    await salon(stack, **{"resources": ["anna", "ben"], **values})


async def book(stack: Stack, hour: float, hours: float = 1, **fields: Any) -> pb.Booking:
    """Book some hours, keeping the rules."""
    values: Fields = {"start_time": at(hour), "end_time": at(hour + hours), "ignore_rules": False, **fields}
    return await stack.booking.CreateBooking(booking_request(**values))


async def reschedule(stack: Stack, booking: pb.Booking, **fields: Any) -> pb.Booking:
    request = pb.RescheduleBookingRequest(salon_id=SALON, booking_code=booking.booking_code, **fields)
    return await stack.booking.RescheduleBooking(request)


async def update(stack: Stack, booking: pb.Booking, mask: str = "", **fields: Any) -> pb.Booking:
    """Update the fields of a booking that are given; those of the request are `more`."""
    more = fields.pop("more", {})
    paths: Fields = {"update_mask": {"paths": mask.split()}} if mask else {}
    changed = pb.Booking(salon_id=SALON, booking_code=booking.booking_code, **fields)
    return await stack.booking.UpdateBooking(pb.UpdateBookingRequest(booking=changed, **paths, **more))


async def read(stack: Stack, booking: pb.Booking) -> pb.Booking:
    request = pb.GetBookingByCodeRequest(salon_id=SALON, booking_code=booking.booking_code)
    return await stack.booking.GetBookingByCode(request)


async def time_off(stack: Stack, start: float, end: float, resource_id: str = "") -> pb.TimeOff:
    times: Fields = {"start_time": at(start), "end_time": at(end)}
    request = pb.CreateTimeOffRequest(salon_id=SALON, resource_id=resource_id, **times)
    return (await stack.booking.CreateTimeOff(request)).time_off


async def move(stack: Stack, booking: pb.Booking, status: str, **fields: Any) -> pb.Booking:
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code, "status": f"BOOKING_STATUS_{status}"}
    return await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, **fields))


def refused(error: Failure, reason: str) -> None:
    """Check that an error is a refusal for a reason."""
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason), error
    assert error.has(PreconditionFailure)


class Rule(NamedTuple):
    """A time that is refused, and one next to it that is not; both are a start and a length in h, and a resource."""

    reason: str
    wrong: tuple[float, float, str]
    right: tuple[float, float, str]
    rules: Fields = {}  # noqa: RUF012
    salon: Fields = {}  # noqa: RUF012
    message: str = ""


SECOND = 1 / HOUR
CLOSED_WEDNESDAY: Fields = {
    "special_hours": Hours(dates={datetime.fromtimestamp(MONDAY + 2 * DAY, UTC).date(): []}).special_hours()
}
RULES = [
    Rule("IN_THE_PAST", (10 - SECOND, 1, "anna"), (10, 1, "anna")),
    Rule("IN_THE_PAST", (-14, 1, ""), (10, 1, "")),
    Rule("IN_THE_PAST", (9, 1, "anna"), (12, 1, "anna"), {"min_notice": 2 * HOUR}),
    Rule("TOO_SOON", (12 - SECOND, 1, "anna"), (12, 1, "anna"), {"min_notice": 2 * HOUR}, message="notice of 2 hours"),
    Rule("TOO_SOON", (11, 1, ""), (35, 1, ""), {"min_notice": DAY}, message="notice of 1 day"),
    Rule("TOO_FAR_AHEAD", (34 + SECOND, 1, "anna"), (34, 1, "anna"), {"max_advance": DAY}, message="up to 1 day ahead"),
    Rule("TOO_FAR_AHEAD", (11, 1, "anna"), (10, 1, "anna"), {"max_advance": 0}),
    Rule("OUTSIDE_HOURS", (17 + SECOND, 1, "anna"), (17, 1, "anna"), message="the salon's hours"),
    Rule("OUTSIDE_HOURS", (33 - SECOND, 1, "anna"), (33, 1, "anna"), message="the salon's hours"),
    Rule("OUTSIDE_HOURS", (17.5, 1, ""), (16.5, 1, ""), message="the salon's hours"),
    Rule("OUTSIDE_HOURS", (6 * 24 + 10, 1, "anna"), (5 * 24 + 10, 1, "anna")),
    Rule("OUTSIDE_HOURS", (12, 24, "anna"), (12, 6, "anna")),
    Rule("OUTSIDE_HOURS", (2 * 24 + 10, 1, "anna"), (3 * 24 + 10, 1, "anna"), {}, CLOSED_WEDNESDAY),
    Rule("OUTSIDE_HOURS", (12, 24 + SECOND, "anna"), (12, 24, "anna"), {}, {"opening_hours": ALWAYS}, "than 24 hours"),
    Rule("OUTSIDE_HOURS", (12, 24 * 400, ""), (12, 24, ""), {}, {"opening_hours": ALWAYS}, "than 24 hours"),
    Rule(
        "OUTSIDE_HOURS",
        (11, 1, "anna"),
        (12, 1, "anna"),
        {},
        {
            "time_zone": "Asia/Tokyo",
            "opening_hours": [{"day_of_week": "MONDAY", "open_time": {"hours": 21}, "close_time": {"hours": 22}}],
        },
    ),
    Rule("OUTSIDE_HOURS", (13.5, 1, "half_day"), (13, 1, "half_day"), message="the resource's hours"),
    Rule("OUTSIDE_HOURS", (17.5, 1, "half_day"), (13.5, 1, "anna"), message="the salon's hours"),
    Rule("RESOURCE_NOT_ACTIVE", (12, 1, "retired"), (12, 1, "anna")),
    Rule("RESOURCE_OFF", (10.5, 1, "on_leave"), (10, 1, "on_leave")),
    Rule("RESOURCE_OFF", (12 - SECOND, 1, "on_leave"), (12, 1, "on_leave")),
    Rule("RESOURCE_OFF", (11, 1, "on_leave"), (11, 1, "anna")),
    Rule("RESOURCE_OFF", (15, 1, "anna"), (16, 1, "anna")),
    Rule("RESOURCE_OFF", (14.5, 1, ""), (14, 1, "")),
]


async def ruled(stack: Stack, rule: Rule) -> None:
    """Create a salon with the rule, resources that work in different ways, and time off of the salon at 15 h."""
    await opened(stack, rule.rules, **rule.salon)
    hours: Any = [{"day_of_week": 1, "open_time": {"hours": 9}, "close_time": {"hours": 14}}]
    await resource(stack, "half_day", working_hours=hours)
    await resource(stack, "retired", active=False)
    await resource(stack, "on_leave")
    if rule.reason == "RESOURCE_OFF":
        await time_off(stack, 11, 12, "on_leave")
        await time_off(stack, 15, 16)


@pytest.mark.parametrize("rule", RULES)
async def test_a_new_booking_keeps_each_rule_unless_it_ignores_them(stack: Stack, rule: Rule) -> None:
    await ruled(stack, rule)
    hour, hours, resource_id = rule.wrong
    error = await failure(book(stack, hour, hours, resource_id=resource_id))
    refused(error, rule.reason)
    assert rule.message in error.message
    if resource_id:
        refused(await failure(book(stack, hour, hours, any_of_resource_ids=[resource_id])), rule.reason)
    assert rows(stack.database_url, "SELECT FROM bookings") == []
    hour, hours, resource_id = rule.right
    await move(stack, await book(stack, hour, hours, resource_id=resource_id), "CANCELLED")
    hour, hours, resource_id = rule.wrong
    await book(stack, hour, hours, resource_id=resource_id, ignore_rules=True)


@pytest.mark.parametrize("rule", RULES)
async def test_a_moved_booking_keeps_each_rule_unless_it_ignores_them(stack: Stack, rule: Rule) -> None:
    await ruled(stack, rule)
    hour, hours, resource_id = rule.wrong
    somewhere: Fields = {"resource_id": "ben" if resource_id else "", "ignore_rules": True}
    booking = await book(stack, 12 * 24, **somewhere)
    to: Fields = {"start_time": at(hour), "end_time": at(hour + hours), "resource_id": resource_id}
    error = await failure(reschedule(stack, booking, **to))
    refused(error, rule.reason)
    assert rule.message in error.message
    assert await read(stack, booking) == booking
    hour, hours, resource_id = rule.right
    right: Fields = {"start_time": at(hour), "end_time": at(hour + hours), "resource_id": resource_id}
    moved = await reschedule(stack, booking, **right)
    assert (moved.start_time, moved.end_time, moved.resource_id) == tuple(right.values())
    moved = await reschedule(stack, booking, **to, ignore_rules=True)
    assert (moved.start_time, moved.end_time, moved.resource_id) == tuple(to.values())


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.reason in ("OUTSIDE_HOURS", "RESOURCE_OFF") and rule.wrong[1] > 1]
)
async def test_a_longer_booking_keeps_the_hours(stack: Stack, rule: Rule) -> None:
    await ruled(stack, rule)
    hour, hours, resource_id = rule.wrong
    booking = await book(stack, hour, resource_id=resource_id)
    for ignores in (False, True):
        for change in (reschedule, update):
            new: Fields = {"end_time": at(hour + hours)}
            if change is update:
                new |= {"more": {"ignore_rules": ignores}}
            else:
                new |= {"ignore_rules": ignores}
            if ignores:
                assert (await change(stack, booking, **new)).end_time == at(hour + hours)
            else:
                refused(await failure(change(stack, booking, **new)), rule.reason)


async def test_a_longer_booking_keeps_time_off_and_the_state_of_its_resource(stack: Stack) -> None:
    await opened(stack)
    await time_off(stack, 13, 14, "anna")
    booking = await book(stack, 11, resource_id="anna")
    refused(await failure(update(stack, booking, end_time=at(13.5))), "RESOURCE_OFF")
    assert (await update(stack, booking, end_time=at(13))).end_time == at(13)
    await resource(stack, "anna", active=False)
    refused(await failure(update(stack, booking, end_time=at(12))), "RESOURCE_NOT_ACTIVE")
    assert (await update(stack, booking, end_time=at(12), more={"ignore_rules": True})).end_time == at(12)


async def test_a_booking_whose_start_stays_may_have_begun(stack: Stack, clock: list[int]) -> None:
    await opened(stack, {"min_notice": HOUR, "max_advance": DAY})
    booking = await book(stack, 12, resource_id="anna")
    clock[0] = MONDAY + 12 * HOUR + 30 * MINUTE
    assert (await reschedule(stack, booking, end_time=at(14))).end_time == at(14)
    assert (await reschedule(stack, booking, start_time=at(12), end_time=at(15))).end_time == at(15)
    assert (await reschedule(stack, booking, resource_id="ben")).resource_id == "ben"
    assert (await update(stack, booking, end_time=at(16))).end_time == at(16)
    refused(await failure(reschedule(stack, booking, start_time=at(12 - SECOND))), "IN_THE_PAST")
    refused(await failure(reschedule(stack, booking, start_time=at(13))), "TOO_SOON")


async def test_a_change_of_the_customer_or_of_notes_does_not_check_the_time(stack: Stack) -> None:
    await opened(stack)
    booking = await book(stack, 20, resource_id="anna", ignore_rules=True)
    assert (await update(stack, booking, customer_phone=OTHER_PHONE)).customer_phone == OTHER_PHONE
    assert (await update(stack, booking, notes="knocks")).notes == "knocks"
    await move(stack, booking, "CANCELLED")
    await stack.booking.DeleteResource(pb.DeleteResourceRequest(salon_id=SALON, resource_id="anna"))
    assert (await update(stack, booking, customer_phone=PHONE)).customer_phone == PHONE


# Local times of a day whose clock changes, and whether a booking from one to the other is within 1 to 4 h.
CHANGES = [
    ("2026-03-29T01:00+01:00", "2026-03-29T04:00+02:00", True),
    ("2026-03-29T01:00+01:00", "2026-03-29T04:00:01+02:00", False),
    ("2026-03-29T00:59:59+01:00", "2026-03-29T03:30+02:00", False),
    ("2026-03-29T01:59+01:00", "2026-03-29T03:01+02:00", True),
    ("2026-10-25T01:00+02:00", "2026-10-25T04:00+01:00", True),
    ("2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", True),
    ("2026-10-25T02:59+02:00", "2026-10-25T04:00:01+01:00", False),
    ("2026-10-25T00:30+02:00", "2026-10-25T01:30+02:00", False),
]


@pytest.mark.parametrize(("start", "end", "is_open"), CHANGES)
async def test_the_hours_of_a_day_on_which_the_clock_changes(
    stack: Stack, clock: list[int], start: str, end: str, is_open: bool
) -> None:
    clock[0] = 1_767_225_600
    nights = Hours({day: [(60, 240)] for day in range(7)}).opening_hours()
    await opened(stack, time_zone="Europe/Berlin", opening_hours=nights)
    times: Fields = {}
    for name, text in (("start_time", start), ("end_time", end)):
        times[name] = Timestamp(seconds=int(datetime.fromisoformat(text).timestamp()))
    request = booking_request(resource_id="anna", ignore_rules=False, **times)
    if is_open:
        await stack.booking.CreateBooking(request)
    else:
        refused(await failure(stack.booking.CreateBooking(request)), "OUTSIDE_HOURS")


async def test_a_booking_is_cancelled_with_the_notice_that_the_salon_needs(stack: Stack, clock: list[int]) -> None:
    await opened(stack, {"min_cancel_notice": 2 * HOUR})
    booking, other = [await book(stack, 14, resource_id=resource_id) for resource_id in ("anna", "ben")]
    held = await book(stack, 14, hold_duration=Duration(seconds=600))
    clock[0] = MONDAY + 12 * HOUR
    await move(stack, booking, "CANCELLED")
    clock[0] += 1
    error = await failure(move(stack, other, "CANCELLED"))
    refused(error, "TOO_LATE_TO_CANCEL")
    assert "2 hours before its start" in error.message
    assert (await move(stack, other, "CONFIRMED")).revision == 2
    refused(await failure(move(stack, other, "CANCELLED")), "TOO_LATE_TO_CANCEL")
    await move(stack, held, "CANCELLED")
    assert (await move(stack, other, "CANCELLED", ignore_rules=True)).status == pb.BOOKING_STATUS_CANCELLED


@pytest.mark.parametrize("who", [{"customer_phone": PHONE}, {"customer_phone": "", "customer_user_id": "DE.1"}])
async def test_a_customer_books_one_at_a_time_where_the_salon_wants_that(
    stack: Stack, clock: list[int], who: Fields
) -> None:
    await opened(stack, {"one_booking_at_a_time_per_customer": True})
    first = await book(stack, 11, **who)
    wrong: list[Fields] = [{}, {"resource_id": "anna"}, {"any_of_resource_ids": ["anna", "ben"]}]
    for fields in wrong:
        error = await failure(book(stack, 13, **who, **fields))
        refused(error, "CUSTOMER_ALREADY_BOOKED")
        assert error.metadata == {"booking_code": first.booking_code}
    other = await book(stack, 13, customer_phone=OTHER_PHONE)
    error = await failure(update(stack, other, **who, mask=" ".join(who)))
    refused(error, "CUSTOMER_ALREADY_BOOKED")
    assert error.metadata == {"booking_code": first.booking_code}
    assert (await update(stack, first, notes="", **who)).revision == 2
    assert (await reschedule(stack, first, start_time=at(12))).start_time == at(12)
    walk_in: Fields = {"customer_phone": "", "customer_name": "Zoë"}
    for _ in range(2):
        await book(stack, 13, **walk_in)
    clock[0] = MONDAY + 13 * HOUR  # the first one has ended
    second = await book(stack, 14, **who)
    await move(stack, second, "CANCELLED")
    third = await book(stack, 14, **who, hold_duration=Duration(seconds=60))
    refused(await failure(book(stack, 14, **who)), "CUSTOMER_ALREADY_BOOKED")
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() WHERE status = 'PENDING' RETURNING 1")
    fourth = await book(stack, 15, **who)
    await book(stack, 16, **who, ignore_rules=True)
    refused(await failure(reschedule(stack, fourth, start_time=at(17))), "CUSTOMER_ALREADY_BOOKED")
    assert third.booking_code != fourth.booking_code


async def test_a_taken_time_is_refused_with_what_is_in_the_way(stack: Stack) -> None:
    await opened(stack, {"buffer_before": 600, "buffer_after": 900})
    first = await book(stack, 12, resource_id="anna", customer_name="Zoë")
    assert (first.buffer_before.seconds, first.buffer_after.seconds) == (600, 900)
    moved = await book(stack, 16, resource_id="anna")
    ended = await book(stack, 10, 0.5, resource_id="anna")
    calls: list[Callable[[], Any]] = [
        lambda: book(stack, 13, resource_id="anna"),
        lambda: book(stack, 13 + 1500 / HOUR - SECOND, resource_id="anna"),
        lambda: book(stack, 13 + 900 / HOUR - SECOND, resource_id="anna", ignore_rules=True),
        lambda: reschedule(stack, moved, start_time=at(11)),
        lambda: reschedule(stack, moved, start_time=at(11), ignore_rules=True),
        lambda: update(stack, ended, end_time=at(12 - 1500 / HOUR + SECOND)),
        lambda: update(stack, ended, end_time=at(12), more={"ignore_rules": True}),
    ]
    for call in calls:
        error = await failure(call())
        refused(error, "SLOT_UNAVAILABLE")
        assert error.metadata == {
            "conflict_start_time": first.start_time.ToJsonString(),
            "conflict_end_time": first.end_time.ToJsonString(),
        }
        assert "Zo" not in str(error.details) + error.message
    error = await failure(book(stack, 12, any_of_resource_ids=["anna"]))
    refused(error, "SLOT_UNAVAILABLE")
    assert error.metadata == {}
    assert (await update(stack, ended, end_time=at(12 - 1500 / HOUR))).revision == 2
    await book(stack, 13 + 900 / HOUR, 0.5, resource_id="anna", ignore_rules=True)


async def test_a_booking_that_ignores_the_rules_has_no_buffers(stack: Stack) -> None:
    await opened(stack, {"buffer_before": 600, "buffer_after": 900})
    for fields in ({"resource_id": "anna"}, {"any_of_resource_ids": ["anna"]}):
        for hour in (11, 12, 13):
            booking = await book(stack, hour, **fields, ignore_rules=True)
            assert (booking.buffer_before.seconds, booking.buffer_after.seconds) == (0, 0)
            refused(await failure(book(stack, hour, **fields, ignore_rules=True)), "SLOT_UNAVAILABLE")
        rows(stack.database_url, "UPDATE bookings SET status = 'CANCELLED' RETURNING 1")


async def cut(stack: Stack, **fields: Any) -> pb.Service:
    """Create a service of 45 min for 30 EUR, with buffers of 5 and 10 min."""
    values: Fields = {
        "duration": Duration(seconds=45 * MINUTE),
        "buffer_before": Duration(seconds=5 * MINUTE),
        "buffer_after": Duration(seconds=10 * MINUTE),
        "price_micros": 30_000_000,
        "currency_code": "EUR",
        **fields,
    }
    return await service(stack, **values)


async def test_what_a_booking_is_follows_from_its_service_as_it_was(stack: Stack) -> None:
    await opened(stack, {"buffer_before": 600, "buffer_after": 900})
    await cut(stack)
    booking = await book(stack, 12, resource_id="anna", service_id="cut", end_time=None)
    assert (booking.end_time, booking.service_id, booking.service_name) == (at(12.75), "cut", "Haircut")
    assert (booking.price_micros, booking.currency_code) == (30_000_000, "EUR")
    assert (booking.buffer_before.seconds, booking.buffer_after.seconds) == (300, 600)
    await cut(stack, name="Cut & go", price_micros=40_000_000, buffer_after=None)
    assert await read(stack, booking) == booking
    assert (await update(stack, booking, service_id="cut", notes="x")).price_micros == 30_000_000
    new = await book(stack, 14, 1, resource_id="anna", service_id="cut", service_name="Bob")
    assert (new.end_time, new.service_name, new.price_micros) == (at(15), "Bob", 40_000_000)
    assert (new.buffer_before.seconds, new.buffer_after.seconds) == (300, 900)
    await stack.booking.DeleteService(pb.DeleteServiceRequest(salon_id=SALON, service_id="cut"))
    assert (await read(stack, new)) == new
    assert (await reschedule(stack, new, start_time=at(16))).service_id == "cut"


async def test_a_service_is_done_by_its_resources_while_it_is_active(stack: Stack) -> None:
    await opened(stack)
    await cut(stack, resource_ids=["ben"])
    await service(stack, "wash")
    named: Fields = {"service_id": "cut", "end_time": None}
    refused(await failure(book(stack, 12, resource_id="anna", **named)), "RESOURCE_NOT_OF_SERVICE")
    refused(await failure(book(stack, 12, any_of_resource_ids=["anna"], **named)), "RESOURCE_NOT_OF_SERVICE")
    booking = await book(stack, 12, resource_id="ben", **named)
    refused(await failure(reschedule(stack, booking, resource_id="anna")), "RESOURCE_NOT_OF_SERVICE")
    washed = await book(stack, 14, resource_id="anna", service_id="wash", end_time=None)
    refused(await failure(update(stack, washed, service_id="cut")), "RESOURCE_NOT_OF_SERVICE")
    await reschedule(stack, booking, resource_id="anna", ignore_rules=True)
    await cut(stack, active=False)
    for fields in ({"resource_id": "ben"}, {"any_of_resource_ids": ["ben"]}, {}):
        refused(await failure(book(stack, 16, **named, **fields)), "SERVICE_NOT_ACTIVE")
    refused(await failure(update(stack, washed, service_id="cut")), "SERVICE_NOT_ACTIVE")
    assert (await book(stack, 16, resource_id="ben", ignore_rules=True, **named)).end_time == at(16.75)
    error = await failure(book(stack, 16, resource_id="ben", service_id="cat"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


async def test_a_service_books_one_of_its_resources_that_is_free(stack: Stack) -> None:
    await opened(stack, resources=["anna", "ben", "cleo"])
    await cut(stack, resource_ids=["ben", "cleo"])
    await service(stack, "wash")
    named: Fields = {"service_id": "cut", "end_time": None}
    booked = [(await book(stack, hour, **named)).resource_id for hour in (12, 12, 14, 14)]
    assert booked == ["ben", "cleo", "ben", "cleo"]
    refused(await failure(book(stack, 12, **named)), "SLOT_UNAVAILABLE")
    assert (await book(stack, 12, service_id="wash", end_time=None)).resource_id == "anna"
    await resource(stack, "cleo", active=False)
    await time_off(stack, 16, 17, "ben")
    refused(await failure(book(stack, 16, **named)), "RESOURCE_OFF")
    assert (await book(stack, 16, service_id="wash", end_time=None)).resource_id == "anna"


async def test_the_resource_with_the_least_booked_time_of_the_local_day_is_booked_then_the_first(stack: Stack) -> None:
    await opened(stack, time_zone="Pacific/Auckland", opening_hours=ALWAYS, resources=["anna", "ben", "cleo"])
    every: Fields = {"any_of_resource_ids": ["cleo", "anna", "ben", "anna"]}
    # Midnight in Auckland is 11 h UTC.
    await book(stack, 10.5, 0.5, resource_id="anna", ignore_rules=True)
    await book(stack, 35, 3, resource_id="anna")
    assert (await book(stack, 20, **every)).resource_id == "anna"
    assert (await book(stack, 22, **every)).resource_id == "ben"
    assert (await book(stack, 24, 0.5, **every)).resource_id == "cleo"
    assert (await book(stack, 26, 0.25, **every)).resource_id == "cleo"
    assert (await book(stack, 28, **every)).resource_id == "cleo"
    assert (await book(stack, 30, **every)).resource_id == "anna"
    assert (await book(stack, 40, **every)).resource_id == "ben"
    await move(stack, await book(stack, 32, 5, resource_id="ben", ignore_rules=True), "CANCELLED")


async def test_a_resource_that_keeps_the_rules_is_booked_before_the_reason_of_another_is_named(stack: Stack) -> None:
    await opened(stack, resources=["anna", "ben", "cleo"])
    await resource(stack, "anna", active=False)
    every: Fields = {"any_of_resource_ids": ["anna", "ben"]}
    assert (await book(stack, 12, **every)).resource_id == "ben"
    refused(await failure(book(stack, 12, **every)), "SLOT_UNAVAILABLE")
    refused(await failure(book(stack, 20, **every)), "OUTSIDE_HOURS")
    refused(await failure(book(stack, 12, any_of_resource_ids=["anna"])), "RESOURCE_NOT_ACTIVE")
    error = await failure(book(stack, 12, any_of_resource_ids=["ben", "chiar-1"]))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    error = await failure(book(stack, 12, any_of_resource_ids=["ben"], resource_id="ben"))
    assert (error.reason, error.code) == ("INVALID_FIELD", grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_customer_is_known_by_a_number_an_id_or_a_name(stack: Stack) -> None:
    await opened(stack)
    whos: list[Fields] = [{"customer_user_id": "DE.13491208655302741918"}, {"customer_name": "Zoë"}]
    for who in whos:
        booking = await book(stack, 12, customer_phone="", **who)
        for name in ("customer_phone", "customer_user_id", "customer_name"):
            assert getattr(booking, name) == who.get(name, "")
    error = await failure(book(stack, 12, customer_phone=""))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    error = await failure(update(stack, booking, "customer_name"))
    assert (error.reason, error.fields) == ("INVALID_FIELD", ["booking"])
    changed = await update(stack, booking, "customer_name customer_phone", customer_phone=OTHER_PHONE)
    assert (changed.customer_name, changed.customer_phone) == ("", OTHER_PHONE)


async def test_an_update_changes_the_fields_of_its_mask(stack: Stack) -> None:
    await opened(stack)
    booking = await book(stack, 12, resource_id="anna", customer_name="Zoë", notes="old", service_name="Cut")
    both: Fields = {"notes": "new", "customer_name": "Zoe"}
    for mask, notes, name in (("", "new", "Zoe"), ("notes", "newer", "Zoe"), ("notes customer_name", "", "")):
        changed = await update(stack, booking, mask, **(both if not mask else {"notes": notes}))
        assert (changed.notes, changed.customer_name, changed.customer_phone) == (notes, name, PHONE)
    all_fields: Fields = {"customer_user_id": "DE.1", "service_name": "Bob", "end_time": at(14), "notes": "all"}
    changed = await update(stack, booking, "*", **all_fields)
    assert (changed.customer_phone, changed.customer_user_id, changed.end_time) == ("", "DE.1", at(14))
    assert (changed.service_name, changed.notes, changed.start_time) == ("Bob", "all", at(12))
    assert (changed.revision, changed.booking_code) == (5, booking.booking_code)
    for mask in ("start_time", "resource_id", "status", "notes colour", "booking_code"):
        error = await failure(update(stack, booking, mask, notes="x"))
        assert (error.reason, error.fields) == ("INVALID_FIELD", ["update_mask"])
    error = await failure(update(stack, booking, notes="x", more={"etag": "1"}))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    booking.booking_code = "NOBODY"
    assert (await failure(update(stack, booking, notes="x"))).reason == "BOOKING_NOT_FOUND"


@pytest.mark.parametrize("fields", [{}, {"service_id": "cut"}])
async def test_an_end_before_the_start_is_refused(stack: Stack, fields: Fields) -> None:
    await opened(stack)
    await cut(stack)
    booking = await book(stack, 12, resource_id="anna")
    for hour in (12, 11, -1000):
        error = await failure(update(stack, booking, end_time=at(hour), **fields))
        assert (error.reason, error.fields) == ("INVALID_FIELD", ["booking.end_time"])


async def test_a_final_booking_is_updated_but_for_its_time(stack: Stack) -> None:
    await opened(stack)
    await cut(stack)
    booking = await book(stack, 12, resource_id="anna", service_id="cut", end_time=None)
    await move(stack, booking, "CANCELLED")
    for fields in ({"service_id": ""}, {"end_time": at(14)}):
        refused(await failure(update(stack, booking, " ".join(fields), **fields)), "INVALID_TRANSITION")
    same: Fields = {"service_id": "cut", "end_time": booking.end_time, "customer_phone": PHONE, "notes": "late"}
    assert (await update(stack, booking, "*", **same)).notes == "late"


async def test_a_new_service_brings_its_name_price_duration_and_buffers(stack: Stack) -> None:
    await opened(stack, {"buffer_after": 900})
    await cut(stack)
    booking = await book(stack, 12, 2, resource_id="anna", service_name="?")
    follows = await book(stack, 14.25, resource_id="anna")
    changed = await update(stack, booking, service_id="cut")
    assert (changed.service_id, changed.service_name, changed.end_time) == ("cut", "Haircut", at(12.75))
    assert (changed.price_micros, changed.currency_code) == (30_000_000, "EUR")
    assert (changed.buffer_before.seconds, changed.buffer_after.seconds) == (300, 600)
    await service(stack, "perm", duration=Duration(seconds=2 * HOUR), buffer_after=Duration(seconds=16 * MINUTE))
    error = await failure(update(stack, booking, service_id="perm"))
    refused(error, "SLOT_UNAVAILABLE")
    assert error.metadata["conflict_start_time"] == follows.start_time.ToJsonString()
    changed = await update(stack, booking, service_id="perm", end_time=at(13), service_name="Perm?")
    assert (changed.service_name, changed.end_time, changed.price_micros) == ("Perm?", at(13), 0)
    assert (await failure(update(stack, booking, service_id="cat"))).reason == "SERVICE_NOT_FOUND"
    changed = await update(stack, booking, "service_id")
    assert (changed.service_id, changed.price_micros, changed.buffer_after.seconds) == ("", 0, 900)
    late = await book(stack, 17, resource_id="ben")
    refused(await failure(update(stack, late, service_id="perm")), "OUTSIDE_HOURS")
    assert (await update(stack, late, service_id="perm", more={"ignore_rules": True})).end_time == at(19)


async def test_a_hold_that_has_not_expired_is_extended(stack: Stack) -> None:
    await opened(stack)
    longer: Fields = {"more": {"hold_duration": Duration(seconds=3600)}}
    held = await book(stack, 12, resource_id="anna", hold_duration=Duration(seconds=60))
    extended = await update(stack, held, **longer)
    lasts = extended.hold_expire_time.ToDatetime() - held.hold_expire_time.ToDatetime()
    assert 3500 < lasts.total_seconds() < 3600
    assert (extended.status, extended.revision) == (pb.BOOKING_STATUS_PENDING, 2)
    for booking in (await book(stack, 14), await move(stack, held, "CONFIRMED")):
        refused(await failure(update(stack, booking, **longer)), "NOT_A_HOLD")
    refused(await failure(update(stack, await move(stack, held, "CANCELLED"), **longer)), "NOT_A_HOLD")
    fraction: Fields = {"more": {"hold_duration": Duration(seconds=1, nanos=1)}}
    error = await failure(update(stack, held, **fraction))
    assert (error.reason, error.fields) == ("INVALID_FIELD", ["hold_duration"])


async def test_an_expired_hold_is_neither_extended_nor_changed(stack: Stack) -> None:
    await opened(stack)
    await cut(stack)
    held = await book(stack, 12, resource_id="anna", hold_duration=Duration(seconds=60))
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() RETURNING 1")
    changes: list[Fields] = [
        {"more": {"hold_duration": Duration(seconds=60)}},
        {"end_time": at(14)},
        {"service_id": "cut"},
    ]
    for fields in changes:
        refused(await failure(update(stack, held, **fields)), "HOLD_EXPIRED")
    taken = await book(stack, 12, resource_id="anna")
    for fields in changes:
        refused(await failure(update(stack, held, **fields)), "HOLD_EXPIRED")
    refused(await failure(move(stack, held, "CONFIRMED")), "HOLD_EXPIRED")
    assert await read(stack, taken) == taken
