"""Lists of bookings: filters, order, pages, and the invalidation by writes."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.stack import PHONE, SALON, Fields, Stack, booking_request, failure, fresh, salon, walk, warm

NOON = 1_800_000_000
HOUR = 3600
OTHER_PHONE = "+4915100000000"
CONFIRMED, CANCELLED = pb.BOOKING_STATUS_CONFIRMED, pb.BOOKING_STATUS_CANCELLED


def listing(**filters: Any) -> pb.ListBookingsRequest:
    return pb.ListBookingsRequest(salon_id=SALON, **filters)


def in_order(bookings: list[pb.Booking]) -> list[pb.Booking]:
    """Return bookings in the order of a list."""
    return sorted(bookings, key=lambda booking: (booking.start_time.seconds, booking.booking_id))


async def filled(stack: Stack) -> list[pb.Booking]:
    """Create bookings in two salons, several at equal times; return those of one salon."""
    await salon(stack)
    await salon(stack, "salon-2")
    await stack.booking.CreateBooking(booking_request(salon_id="salon-2"))
    made = []
    for number in range(9):
        status = CONFIRMED if number % 2 else pb.BOOKING_STATUS_PENDING
        phone = OTHER_PHONE if number % 3 else PHONE
        start = NOON - HOUR * (number // 4)
        made.append(await stack.booking.CreateBooking(booking_request(start, status=status, customer_phone=phone)))
    return in_order(made)


async def test_filters_select_bookings_of_the_salon(stack: Stack) -> None:
    bookings = await filled(stack)
    bounds: Fields = {"start_time": Timestamp(seconds=NOON - HOUR), "end_time": Timestamp(seconds=NOON)}
    filters: list[tuple[dict[str, Any], Callable[[pb.Booking], bool]]] = [
        ({}, lambda _: True),
        ({"status": CONFIRMED}, lambda booking: booking.status == CONFIRMED),
        ({"customer_phone": PHONE}, lambda booking: booking.customer_phone == PHONE),
        (bounds, lambda booking: NOON - HOUR <= booking.start_time.seconds < NOON),
        ({"start_time": Timestamp(seconds=NOON)}, lambda booking: booking.start_time.seconds >= NOON),
        ({"end_time": Timestamp(seconds=NOON)}, lambda booking: booking.start_time.seconds < NOON),
        (
            {"status": CONFIRMED, "customer_phone": PHONE, **bounds},
            lambda booking: (
                booking.status == CONFIRMED
                and booking.customer_phone == PHONE
                and NOON - HOUR <= booking.start_time.seconds < NOON
            ),
        ),
        ({"status": CANCELLED}, lambda _: False),
    ]
    for fields, wanted in filters:
        expected = [booking for booking in bookings if wanted(booking)]
        assert list((await stack.booking.ListBookings(listing(**fields))).bookings) == expected
        for page_size in (1, 2):
            assert await walk(stack.booking.ListBookings, listing(**fields), page_size) == expected


async def test_pages_have_no_gaps_or_duplicates_even_with_equal_times(stack: Stack) -> None:
    bookings = await filled(stack)
    for page_size in (1, 2, 3, 4, 8, 9, 10, 2**31 - 1):
        assert await walk(stack.booking.ListBookings, listing(), page_size) == bookings


async def test_a_page_has_50_bookings_by_default_and_at_most_200(stack: Stack) -> None:
    await salon(stack)
    for number in range(201):
        await stack.booking.CreateBooking(booking_request(NOON + number))
    for page_size, expected in ((0, 50), (199, 199), (200, 200), (1000, 200)):
        reply = await stack.booking.ListBookings(listing(page_size=page_size))
        assert (len(reply.bookings), reply.next_page_token != "") == (expected, True)


async def test_a_booking_created_between_two_pages_shifts_nothing(stack: Stack) -> None:
    bookings = await filled(stack)
    first = await stack.booking.ListBookings(listing(page_size=4))
    await stack.booking.CreateBooking(booking_request(NOON - 9 * HOUR))
    second = await stack.booking.ListBookings(listing(page_size=200, page_token=first.next_page_token))
    assert [*first.bookings, *second.bookings] == bookings


async def test_a_page_token_is_valid_only_for_its_filters(stack: Stack) -> None:
    await filled(stack)
    token = (await stack.booking.ListBookings(listing(page_size=1))).next_page_token
    others = (await stack.booking.ListSalons(pb.ListSalonsRequest(page_size=1))).next_page_token
    wrong: list[Awaitable[Any]] = [
        stack.booking.ListBookings(listing(page_token=token, status=CONFIRMED)),
        stack.booking.ListBookings(listing(page_token=token, end_time=Timestamp(seconds=NOON))),
        stack.booking.ListBookings(pb.ListBookingsRequest(salon_id="salon-2", page_token=token)),
        stack.booking.ListSalons(pb.ListSalonsRequest(page_token=token)),
        stack.booking.ListBookings(listing(page_token=others)),
        *(stack.booking.ListBookings(listing(page_token=bad)) for bad in ("x", token[:-4], "bnVsbA==", "ä")),
    ]
    for call in wrong:
        error = await failure(call)
        assert (error.reason, error.fields) == ("INVALID_FIELD", ["page_token"])
    await stack.booking.ListBookings(listing(page_token=token, page_size=7))


async def test_bookings_of_an_unknown_salon_are_not_found(stack: Stack) -> None:
    assert (await failure(stack.booking.ListBookings(listing()))).reason == "SALON_NOT_FOUND"
    await salon(stack)
    assert await stack.booking.ListBookings(listing()) == pb.ListBookingsResponse()


async def test_a_write_to_a_booking_is_in_the_next_reply_of_bookings_and_stats(stack: Stack) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request(NOON))
    names: Fields = {"salon_id": SALON, "booking_code": booking.booking_code}
    period: Fields = {"salon_id": SALON, "start_time": Timestamp(), "end_time": Timestamp(seconds=4_000_000_000)}
    now = booking.create_time.seconds
    days: Fields = {"start_time": Timestamp(seconds=now - 86_400), "end_time": Timestamp(seconds=now + 86_400)}
    cached: list[tuple[Any, Any]] = [
        (stack.booking.GetBookingByCode, pb.GetBookingByCodeRequest(**names)),
        (stack.booking.ListBookings, listing()),
        (stack.stats.GetSalonStats, stats_pb2.GetSalonStatsRequest(**period)),
        (stack.stats.ListBookingStats, stats_pb2.ListBookingStatsRequest(salon_id=SALON, **days)),
    ]

    async def create() -> None:
        await stack.booking.CreateBooking(booking_request(NOON + HOUR))

    async def confirm() -> None:
        await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**names, status=CONFIRMED))

    for write, of_code, in_list in ((create, 1, [1, 1]), (confirm, 2, [2, 1])):
        for rpc, request in cached:
            await warm(rpc, request)
        await write()
        found, listed, stats, created = [await rpc(request) for rpc, request in cached]
        assert (found.status, [booking.status for booking in listed.bookings]) == (of_code, in_list)
        assert stats.bookings == sum(day.bookings for day in created.booking_stats) == 2
        assert sum(day.confirmed for day in created.booking_stats) == of_code - 1


async def test_a_write_leaves_other_salons_cached(stack: Stack) -> None:
    await filled(stack)
    other = pb.ListBookingsRequest(salon_id="salon-2")
    await warm(stack.booking.ListBookings, other)
    await stack.booking.CreateBooking(booking_request())
    await salon(stack)
    await warm(stack.booking.ListBookings, other)


async def test_the_absence_of_a_booking_is_cached_until_it_is_created(stack: Stack) -> None:
    await salon(stack)
    assert len((await fresh(stack.booking.ListBookings, listing())).bookings) == 0
    await warm(stack.booking.ListBookings, listing())
    await stack.booking.CreateBooking(booking_request())
    assert len((await fresh(stack.booking.ListBookings, listing())).bookings) == 1
