"""Bookings keep the hours, time off and the rules of their salon; `ignore_rules` skips all but the overlap."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as pb
from tests.calendars import DAY, HOUR, MINUTE, Hours
from tests.keeping import (
    ALWAYS,
    MONDAY,
    OTHER_PHONE,
    SECOND,
    at,
    book,
    clock,
    move,
    opened,
    read,
    refused,
    reschedule,
    stack,
    time_off,
    update,
)
from tests.stack import PHONE, Fields, Stack, booking_request, failure, rows
from tests.test_resources import resource

__all__ = ["clock", "stack"]


class Rule(NamedTuple):
    """A time that is refused, and one next to it that is not; both are a start and a length in h, and a resource."""

    reason: str
    wrong: tuple[float, float, str]
    right: tuple[float, float, str]
    rules: Fields = {}  # noqa: RUF012
    salon: Fields = {}  # noqa: RUF012
    message: str = ""


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


async def test_a_refusal_has_the_limit_in_its_metadata(stack: Stack) -> None:
    await opened(stack, {"min_notice": HOUR, "max_advance": DAY, "min_cancel_notice": 2 * HOUR})
    await time_off(stack, 14, 15, "anna")
    booking = await book(stack, 11.5)
    refusals: list[tuple[Any, dict[str, Timestamp]]] = [
        (book(stack, 10.5), {"earliest_start_time": at(11)}),
        (book(stack, 35), {"latest_start_time": at(34)}),
        (book(stack, 13.5, resource_id="anna"), {"conflict_start_time": at(14), "conflict_end_time": at(15)}),
        (move(stack, booking, "CANCELLED"), {"latest_cancel_time": at(9.5)}),
    ]
    for call, limits in refusals:
        assert (await failure(call)).metadata == {name: time.ToJsonString() for name, time in limits.items()}
    await book(stack, 11)
    await book(stack, 34)


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
