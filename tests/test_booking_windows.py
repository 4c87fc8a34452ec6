"""Lists of the bookings that start within a day or a week: each write to one of these is in the next reply."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.interval_pb2 import Interval
from hypothesis import given
from hypothesis import strategies as st

from parlor.booking.v1 import booking_pb2 as pb
from parlor.ops.v1 import ops_pb2 as ops
from services.booking.expiry import HoldExpiry
from services.cache_tags import CacheTags
from tests.stack import (
    PHONE,
    SALON,
    Fields,
    Stack,
    booking_request,
    cached,
    failure,
    rows,
    salon,
    unconnected_cache,
    warm,
)

HOUR, DAY = 3600, 86_400
FEB_1 = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp())
JAN_30, JAN_31, FEB_2, FEB_3 = (FEB_1 + days * DAY for days in (-2, -1, 1, 2))
OTHERS = "+4915100000002"
UNBOUNDED = {"all", "from Feb 1", "until Feb 2", "month", "overlapping Feb 1"}
WEEKS = {"week of Jan 25", "week of Feb 1"}
TIMES = st.integers(0, 253_370_764_799)
expire_holds = HoldExpiry.expire


def time(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))


def between(start: float, end: float, **filters: Any) -> pb.ListBookingsRequest:
    return pb.ListBookingsRequest(salon_id=SALON, start_time=time(start), end_time=time(end), **filters)


class Lists:
    """Lists of one salon's bookings, by name."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        overlapping = Interval(start_time=time(FEB_1), end_time=time(FEB_2))
        self.requests = {
            "all": pb.ListBookingsRequest(salon_id=SALON),
            "from Feb 1": pb.ListBookingsRequest(salon_id=SALON, start_time=time(FEB_1)),
            "until Feb 2": pb.ListBookingsRequest(salon_id=SALON, end_time=time(FEB_2)),
            "overlapping Feb 1": pb.ListBookingsRequest(salon_id=SALON, overlapping=overlapping),
            "month": between(FEB_1, FEB_1 + 28 * DAY),
            "week of Jan 25": between(FEB_1 - 7 * DAY, FEB_1),
            "week of Feb 1": between(FEB_1, FEB_1 + 7 * DAY),
            "week of March 1": between(FEB_1 + 28 * DAY, FEB_1 + 35 * DAY),
            "Jan 30": between(JAN_30, JAN_31),
            "Jan 31": between(JAN_31, FEB_1),
            "Feb 1 in Auckland": between(JAN_31 + 11 * HOUR, FEB_1 + 11 * HOUR),
            "Feb 1": between(FEB_1, FEB_2),
            "open, Feb 1": between(FEB_1, FEB_2, statuses=[1, 2]),
            "by update_time, Feb 1": between(FEB_1, FEB_2, order_by="update_time"),
            "mine, Feb 1": between(FEB_1, FEB_2, customer_phone=PHONE),
            "Feb 2": between(FEB_2, FEB_3),
        }

    def of(self, *days: str) -> set[str]:
        """Return the lists of days, and those that any write to bookings near Feb 1 invalidates."""
        return UNBOUNDED | WEEKS | {name for name in self.requests if name.endswith(days)}

    async def missed(self, write: Callable[[], Awaitable[Any]]) -> set[str]:
        """Cache every list, write, and return the lists that are no longer cached; all must be current."""
        for request in self.requests.values():
            await warm(self.stack.booking.ListBookings, request)
        await write()
        after = {name: await cached(self.stack.booking.ListBookings(each)) for name, each in self.requests.items()}
        await self.stack.servers["booking"].cache.settle()
        for name, request in self.requests.items():
            now = await self.stack.booking.ListBookings(request, metadata=(("cache-control", "no-cache"),))
            assert (name, after[name][0]) == (name, now)
        return {name for name, (_, source) in after.items() if source == "miss"}

    async def each(self, writes: Iterable[tuple[Any, Any, set[str]]]) -> None:
        """Make each write, and check which lists it invalidates."""
        for rpc, request, expected in writes:
            assert (str(request), await self.missed(partial(rpc, request))) == (str(request), expected)


@pytest.fixture
async def lists(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Lists:
    """A salon whose expired holds no background job ends."""

    async def nothing(_: Any) -> None:
        pass

    monkeypatch.setattr("services.booking.expiry.HoldExpiry.expire", nothing)
    await salon(stack)
    return Lists(stack)


async def refusal(rpc: Callable[[Any], Any], request: Any) -> None:
    """Make a call that must fail."""
    await failure(rpc(request))


async def hold(stack: Stack, start: int) -> pb.Booking:
    """Create a hold of an hour that has expired."""
    request = booking_request(start, resource_id="anna", hold_duration=Duration(seconds=600))
    made = await stack.booking.CreateBooking(request)
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() WHERE hold_expires_at > now() RETURNING 1")
    return made


async def test_a_write_invalidates_the_lists_of_the_days_before_and_after(lists: Lists) -> None:
    service = lists.stack.booking
    made = await service.CreateBooking(booking_request(FEB_1 + 12 * HOUR))
    one: Fields = {"salon_id": SALON, "booking_code": made.booking_code}

    def moved(start: float, hours: int = 1) -> pb.RescheduleBookingRequest:
        times: Fields = {"start_time": time(start), "end_time": time(start + hours * HOUR)}
        return pb.RescheduleBookingRequest(**one, **times, ignore_rules=True)

    later_end = pb.Booking(**one, end_time=time(FEB_1 + 3 * HOUR))
    cancel = pb.UpdateBookingStatusRequest(**one, status=pb.BOOKING_STATUS_CANCELLED, ignore_rules=True)
    others = pb.Booking(**one, customer_phone=OTHERS)
    await lists.each(
        [
            (service.CreateBooking, booking_request(FEB_1 + 12 * HOUR), lists.of("Feb 1")),
            (service.CreateBooking, booking_request(FEB_2 + 12 * HOUR), lists.of("Feb 2")),
            (
                service.UpdateBookingStatus,
                pb.UpdateBookingStatusRequest(**one, status=pb.BOOKING_STATUS_CONFIRMED),
                lists.of("Feb 1"),
            ),
            (service.UpdateBooking, pb.UpdateBookingRequest(booking=others), lists.of("Feb 1")),
            (service.RescheduleBooking, moved(FEB_1 + 15 * HOUR), lists.of("Feb 1")),
            (service.RescheduleBooking, moved(JAN_30 + 12 * HOUR), lists.of("Jan 30", "Feb 1")),
            # Over midnight it belongs to the day on which it starts.
            (service.RescheduleBooking, moved(FEB_1 - HOUR, hours=2), lists.of("Jan 30", "Jan 31", "in Auckland")),
            (
                service.UpdateBooking,
                pb.UpdateBookingRequest(booking=later_end, ignore_rules=True),
                lists.of("Jan 31", "in Auckland"),
            ),
            (service.RescheduleBooking, moved(FEB_1 + 12 * HOUR), lists.of("Jan 31", "in Auckland", "Feb 1")),
            (service.RescheduleBooking, moved(FEB_1 + 28 * DAY), {*lists.of("Feb 1"), "week of March 1"}),
            (service.UpdateBookingStatus, cancel, UNBOUNDED | {"week of March 1"}),
        ]
    )


async def test_a_refused_write_invalidates_no_list(lists: Lists) -> None:
    service = lists.stack.booking
    made = await service.CreateBooking(booking_request(FEB_1 + 12 * HOUR))
    one: Fields = {"salon_id": SALON, "booking_code": made.booking_code}
    refused = (
        (service.UpdateBookingStatus, pb.UpdateBookingStatusRequest(**one, status=pb.BOOKING_STATUS_COMPLETED)),
        (service.RescheduleBooking, pb.RescheduleBookingRequest(**one, start_time=time(FEB_2), etag="0")),
        (service.UpdateBooking, pb.UpdateBookingRequest(booking=pb.Booking(**one, notes="x"), etag="0")),
    )
    for rpc, request in refused:
        assert await lists.missed(partial(refusal, rpc, request)) == set()


async def test_an_erasure_invalidates_the_lists_of_all_days_of_the_customer(lists: Lists) -> None:
    service = lists.stack.booking
    for start, phone in ((JAN_30, PHONE), (FEB_1 + 12 * HOUR, OTHERS), (FEB_2 + 12 * HOUR, PHONE)):
        await service.CreateBooking(booking_request(start, customer_phone=phone))
    erase = pb.EraseCustomerRequest(salon_id=SALON, phone_number=PHONE)
    # It also removes all entries of the salon's bookings, since they may name the customer.
    assert await lists.missed(partial(service.EraseCustomer, erase)) == set(lists.requests)
    listed = await asyncio.gather(*(service.ListBookings(lists.requests[day]) for day in ("Jan 30", "Feb 1", "Feb 2")))
    assert [reply.bookings[0].customer_phone for reply in listed] == ["", OTHERS, ""]


async def test_the_expiry_of_a_hold_invalidates_the_lists_of_its_day(lists: Lists) -> None:
    await hold(lists.stack, FEB_1 + 12 * HOUR)
    booking = lists.stack.servers["booking"]
    job = HoldExpiry(booking.cache, booking.database)
    assert await lists.missed(lambda: expire_holds(job)) == lists.of("Feb 1")
    [shown] = (await lists.stack.booking.ListBookings(lists.requests["Feb 1"])).bookings
    assert shown.status == pb.BOOKING_STATUS_EXPIRED


async def test_a_booking_that_ends_a_hold_of_the_day_before_invalidates_the_lists_of_both_days(lists: Lists) -> None:
    service = lists.stack.booking
    both = lists.of("Jan 31", "in Auckland", "Feb 1")
    await hold(lists.stack, FEB_1 - HOUR // 2)
    assert await lists.missed(partial(service.CreateBooking, booking_request(FEB_1, resource_id="anna"))) == both
    await hold(lists.stack, FEB_1 - HOUR)
    made = await service.CreateBooking(booking_request(FEB_2 + 12 * HOUR, resource_id="ben"))
    move = pb.RescheduleBookingRequest(
        salon_id=SALON,
        booking_code=made.booking_code,
        start_time=time(FEB_1 - HOUR // 2),
        end_time=time(FEB_1),
        resource_id="anna",
        ignore_rules=True,
    )
    assert await lists.missed(partial(service.RescheduleBooking, move)) == lists.of("Jan 31", "in Auckland", "Feb 2")


async def test_invalidations_by_hand_invalidate_every_list(lists: Lists) -> None:
    await lists.stack.booking.CreateBooking(booking_request(FEB_1))
    by_hand = lists.stack.ops["booking"]
    salon_1, namespace = ops.InvalidateSalonRequest(salon_id=SALON), ops.InvalidateNamespaceRequest(namespace="booking")
    pattern = ops.InvalidatePatternRequest(pattern=f"query:booking:salon:{{{SALON}}}:*")
    everything = set(lists.requests)
    await lists.each(
        [
            (by_hand.InvalidateSalon, salon_1, everything),
            (by_hand.InvalidateNamespace, namespace, everything),
            (by_hand.InvalidatePattern, pattern, everything),
        ]
    )


@pytest.fixture(scope="module")
def tags() -> CacheTags:
    return CacheTags(unconnected_cache())


@given(TIMES, st.integers(1, 20 * DAY), st.floats(0, 1))
def test_a_booking_in_a_list_invalidates_its_tag(tags: CacheTags, start: int, length: int, share: float) -> None:
    end = start + length
    tag = tags.bookings_between(SALON, start, end)
    for each in (start, start + int(share * (length - 1)), end - 1):
        assert tag in tags.of_bookings(SALON, ("B1", each))


def test_a_booking_invalidates_seven_windows_however_often_it_is_named(tags: CacheTags) -> None:
    whole, stats, *sub_tags = tags.of_bookings(SALON, ("B1", FEB_1), ("B1", FEB_1), ("B1", FEB_1 + 1))
    assert [whole, stats] == [tags.bookings(SALON), tags.stats(SALON)]
    assert tags.booking(SALON, "B1") in sub_tags
    assert len(sub_tags) == len(set(sub_tags)) == 1 + 5 + 2


@pytest.mark.parametrize(
    "zone",
    [
        *("UTC", "Europe/Berlin", "America/St_Johns", "America/Los_Angeles", "Asia/Kathmandu", "Australia/Lord_Howe"),
        *("Pacific/Kiritimati", "Pacific/Pago_Pago", "Pacific/Chatham", "Australia/Adelaide"),
    ],
)
def test_days_and_weeks_of_every_time_zone_have_sub_tags(tags: CacheTags, zone: str) -> None:
    monday = datetime(2027, 1, 4, tzinfo=ZoneInfo(zone))
    midnights = [int((monday + timedelta(days=day)).timestamp()) for day in range(365)]
    whole = tags.bookings(SALON).name
    days = {tags.bookings_between(SALON, *each).name.rpartition(":")[0] for each in pairwise(midnights)}
    weeks = {tags.bookings_between(SALON, *each).name.rpartition(":")[0] for each in pairwise(midnights[::7])}
    assert (days, weeks) == ({f"{whole}:day"}, {f"{whole}:week"})
    assert tags.bookings_between(SALON, midnights[0], midnights[28]).name == whole


async def test_a_list_that_ends_within_a_second_has_the_bookings_of_that_second(lists: Lists) -> None:
    end = FEB_2 + 6 * HOUR  # of a window that begins with Feb 1
    lists.requests = {"exactly": between(FEB_1, end), "longer": between(FEB_1, end + 0.5)}
    request = booking_request(end, start_time=time(end + 0.25))
    assert await lists.missed(partial(lists.stack.booking.CreateBooking, request)) == {"longer"}
    listed = await lists.stack.booking.ListBookings(lists.requests["longer"])
    assert [booking.start_time for booking in listed.bookings] == [time(end + 0.25)]
