"""ListBookings with its filters and orders, against the same filters in Python."""

from collections.abc import Callable
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.interval_pb2 import Interval

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Fields, Stack, booking_request, failure, fresh, rows, salon, walk, warm
from tests.test_resources import resource

START = 1_800_000_000
RESOURCES = ("anna", "ben", "chair-1")
STATUSES = ("PENDING", "CONFIRMED", "CANCELLED", "COMPLETED", "NO_SHOW", "EXPIRED")
PHONES = ("+4915100000001", "+4915100000002", "")
USERS = ("", "DE.1", 'US."2",{}\\')
ROWS = 120

Matches = Callable[[pb.Booking], bool]


async def filled(stack: Stack, seed: int = 1) -> list[pb.Booking]:
    """Create bookings of random times, statuses, resources and customers; several share a start or an update_time."""
    random = Random(seed)
    await salon(stack)
    await salon(stack, "salon-2")
    for name in RESOURCES:
        await resource(stack, name)
        await resource(stack, name, salon_id="salon-2")
    values = []
    for number in range(ROWS):
        start = START + random.randrange(40) * 900
        end = start + random.choice((900, 3600, 20_000))
        name = random.choice((*(f"'{each}'" for each in RESOURCES), "NULL"))
        status = random.choice(STATUSES)
        if status in ("PENDING", "CONFIRMED") and name != "NULL":
            name = "NULL"  # they may overlap here
        texts = [random.choice(PHONES), random.choice(USERS), status]
        updated = f"to_timestamp({START + random.randrange(30)}.123456)"
        quoted = ", ".join(f"'{text}'" for text in texts)
        salon_id = SALON if number % 10 else "salon-2"
        times = f"to_timestamp({start}), to_timestamp({end})"
        values.append(f"('{salon_id}', 'C{number}', {name}, {times}, {quoted}, {updated})")
    query = f"""
        INSERT INTO bookings (salon_id, booking_code, resource_id, start_ts, end_ts, customer_phone, customer_user_id,
            status, updated_at)
        VALUES {", ".join(values)} RETURNING 1"""
    rows(stack.database_url, query)
    return await walk(stack.booking.ListBookings, pb.ListBookingsRequest(salon_id=SALON), 200)


def nanos(time: Timestamp) -> int:
    return time.ToNanoseconds()


def drawn(random: Random) -> list[tuple[str, Any, Matches]]:
    """Return each filter with a random value, and what it matches."""
    start, since = (
        START + random.randrange(40) * 900,
        Timestamp(seconds=START + random.randrange(30), nanos=123_456_000),
    )
    begin, end = Timestamp(seconds=start), Timestamp(seconds=start + random.choice((1, 900, 9000)))
    names = random.sample(RESOURCES, random.randint(1, 3))
    statuses = [
        pb.BookingStatus.Value(f"BOOKING_STATUS_{name}") for name in random.sample(STATUSES, random.randint(1, 4))
    ]
    status, phone, user = random.choice(statuses), random.choice(PHONES[:2]), random.choice(USERS[1:])
    interval = Interval(start_time=begin, end_time=end)
    return [
        ("resource_ids", names * 2, lambda b: b.resource_id in names),
        ("statuses", statuses * 2 if len(statuses) < 4 else statuses, lambda b: b.status in statuses),
        ("status", status, lambda b: b.status == status),
        ("customer_phone", phone, lambda b: b.customer_phone == phone),
        ("customer_user_id", user, lambda b: b.customer_user_id == user),
        ("overlapping", interval, lambda b: nanos(b.start_time) < nanos(end) and nanos(b.end_time) > nanos(begin)),
        ("updated_since", since, lambda b: nanos(b.update_time) >= nanos(since)),
        ("start_time", begin, lambda b: nanos(b.start_time) >= nanos(begin)),
        ("end_time", Timestamp(seconds=start + 9000), lambda b: nanos(b.start_time) < nanos(begin) + 9000 * 10**9),
    ]


@pytest.mark.parametrize("order_by", ["", "start_time", "update_time"])
async def test_every_filter_alone_and_any_of_them_together_find_what_they_say(stack: Stack, order_by: str) -> None:
    made = await filled(stack)
    assert len(made) == ROWS * 9 // 10
    random = Random(order_by)
    found = 0
    for turn in range(120):
        filters = drawn(random)
        filters = filters[turn % 9 : turn % 9 + 1] if turn < 27 else random.sample(filters, random.randint(2, 4))
        fields: Fields = {name: value for name, value, _ in filters}
        request = pb.ListBookingsRequest(salon_id=SALON, order_by=order_by, **fields)
        listed = await walk(stack.booking.ListBookings, request, random.choice((1, 3, 7, 200)))
        time = "update_time" if order_by == "update_time" else "start_time"
        wanted = sorted(made, key=lambda booking: (nanos(getattr(booking, time)), booking.booking_id))
        assert listed == [booking for booking in wanted if all(matches(booking) for _, _, matches in filters)], fields
        found += len(listed)
    assert found > 500


async def test_a_page_token_is_bound_to_every_filter_and_to_the_order(stack: Stack) -> None:
    await filled(stack)
    begin, end = Timestamp(seconds=START), Timestamp(seconds=START + 40 * 900)
    given: list[Fields] = [
        {},
        {"resource_ids": ["anna"]},
        {"resource_ids": ["anna", "ben"]},
        {"statuses": [1, 2, 3, 4]},
        {"statuses": [3, 4, 5, 6]},
        {"customer_user_id": "DE.1"},
        {"overlapping": Interval(start_time=begin, end_time=end)},
        {"overlapping": Interval(start_time=begin, end_time=Timestamp(seconds=START + 30 * 900))},
        {"updated_since": begin},
        {"order_by": "update_time"},
        {"order_by": "update_time", "updated_since": begin},
    ]
    tokens = []
    for fields in given:
        listed = await stack.booking.ListBookings(pb.ListBookingsRequest(salon_id=SALON, page_size=1, **fields))
        tokens.append(listed.next_page_token)
    assert all(tokens)
    for place, fields in enumerate(given):
        for made_for, token in enumerate(tokens):
            request = pb.ListBookingsRequest(salon_id=SALON, page_token=token, **fields)
            if place == made_for:
                await stack.booking.ListBookings(request)
            else:
                error = await failure(stack.booking.ListBookings(request))
                assert (error.reason, error.fields) == ("INVALID_FIELD", ["page_token"])


async def test_the_order_and_repetition_of_values_make_no_other_list(stack: Stack) -> None:
    await filled(stack)
    listing = pb.ListBookingsRequest(salon_id=SALON, page_size=1, resource_ids=["anna", "ben"])
    listing.statuses.extend((pb.BOOKING_STATUS_CANCELLED, pb.BOOKING_STATUS_COMPLETED))
    token = (await stack.booking.ListBookings(listing)).next_page_token
    fields: Fields = {"resource_ids": ["ben", "anna", "ben"], "statuses": [4, 3]}
    same = pb.ListBookingsRequest(salon_id=SALON, page_size=1, page_token=token, **fields)
    assert len((await stack.booking.ListBookings(same)).bookings) == 1


async def test_lists_of_an_unknown_salon_or_resource(stack: Stack) -> None:
    for fields in ({"resource_ids": ["anna"]}, {"statuses": [1]}, {"order_by": "update_time"}):
        named: Fields = dict(fields)
        error = await failure(stack.booking.ListBookings(pb.ListBookingsRequest(salon_id=SALON, **named)))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")
    await filled(stack)
    unknown = pb.ListBookingsRequest(salon_id=SALON, resource_ids=["chiar-1"])
    assert list((await stack.booking.ListBookings(unknown)).bookings) == []


async def test_a_write_is_in_the_next_list_by_any_filter(stack: Stack) -> None:
    await salon(stack)
    await resource(stack)
    begin, end = Timestamp(seconds=START), Timestamp(seconds=START + 900)
    filters: list[Fields] = [
        {"resource_ids": ["anna"]},
        {"statuses": [1]},
        {"overlapping": Interval(start_time=begin, end_time=end)},
        {"updated_since": begin},
        {"order_by": "update_time"},
    ]
    requests = [pb.ListBookingsRequest(salon_id=SALON, **fields) for fields in filters]
    for request in requests:
        assert list((await warm(stack.booking.ListBookings, request)).bookings) == []
    booking = await stack.booking.CreateBooking(booking_request(START, resource_id="anna"))
    since = Timestamp(seconds=booking.update_time.seconds)
    requests[3] = pb.ListBookingsRequest(salon_id=SALON, updated_since=since)
    for request in requests:
        assert list((await fresh(stack.booking.ListBookings, request)).bookings) == [booking]


SECOND = Timestamp(seconds=START + 1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"overlapping": Interval(start_time=SECOND)}, "overlapping"),
        ({"overlapping": Interval(end_time=SECOND)}, "overlapping"),
        ({"overlapping": Interval()}, "overlapping"),
        ({"overlapping": Interval(start_time=SECOND, end_time=SECOND)}, "overlapping"),
        ({"overlapping": Interval(start_time=SECOND, end_time=Timestamp(seconds=START))}, "overlapping"),
        ({"overlapping": Interval(start_time=Timestamp(nanos=-1), end_time=SECOND)}, "overlapping.start_time"),
        ({"overlapping": Interval(start_time=Timestamp(seconds=-(10**18)), end_time=SECOND)}, "overlapping.start_time"),
        ({"overlapping": Interval(start_time=SECOND, end_time=Timestamp(seconds=10**18))}, "overlapping.end_time"),
        ({"statuses": [0]}, "statuses[0]"),
        ({"statuses": [7]}, "statuses[0]"),
        ({"statuses": [1] * 7}, "statuses"),
        ({"resource_ids": ["a b"]}, "resource_ids[0]"),
        ({"resource_ids": ["a"] * 51}, "resource_ids"),
        ({"order_by": "name"}, "order_by"),
        ({"order_by": "start_time desc"}, "order_by"),
        ({"updated_since": Timestamp(seconds=-1)}, "updated_since"),
        ({"customer_user_id": "a\0"}, "customer_user_id"),
        ({"customer_user_id": "a" * 257}, "customer_user_id"),
    ],
)
async def test_invalid_filters_are_refused(stack: Stack, fields: Fields, named: str) -> None:
    await salon(stack)
    error = await failure(stack.booking.ListBookings(pb.ListBookingsRequest(salon_id=SALON, **fields)))
    assert (error.code, error.reason, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", [named])


async def test_a_time_of_any_length_may_overlap(stack: Stack) -> None:
    made = await filled(stack)
    for first, last in ((-62_135_596_800, 253_402_300_799), (0, 4_000_000_000)):
        interval = Interval(start_time=Timestamp(seconds=first), end_time=Timestamp(seconds=last))
        request = pb.ListBookingsRequest(salon_id=SALON, overlapping=interval)
        assert await walk(stack.booking.ListBookings, request, 200) == made
