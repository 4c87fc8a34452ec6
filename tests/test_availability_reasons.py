"""A search without slots says why, day by day."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from parlor.booking.v1 import booking_pb2 as pb
from tests.calendars import DAY, HOUR, Hours
from tests.searches import MONDAY, NINE, clock, off, opened, request, stack
from tests.stack import Stack, booking_request
from tests.test_resources import resource

__all__ = ["clock", "stack"]


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
