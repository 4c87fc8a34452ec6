"""BatchGetBookings: many bookings by code, one MGET and one statement."""

import grpc

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Stack, booking_request, cached, executed, failure, quiet, salon, warm

NOON = 1_800_000_000


def batch(*codes: str, salon_id: str = SALON) -> pb.BatchGetBookingsRequest:
    return pb.BatchGetBookingsRequest(salon_id=salon_id, booking_codes=codes)


async def made(stack: Stack, count: int) -> list[pb.Booking]:
    await salon(stack)
    return [await stack.booking.CreateBooking(booking_request(NOON + number)) for number in range(count)]


async def test_bookings_come_in_the_order_of_the_codes_with_one_statement(database_url: str, redis_url: str) -> None:
    async with quiet(database_url, redis_url) as stack:
        bookings = await made(stack, 20)
        long = await stack.booking.CreateBooking(booking_request(NOON - 1, notes="x" * 2000))
        wanted = [*bookings[::-1], long, bookings[3], long]
        request = batch(*(booking.booking_code.lower() for booking in wanted))
        await warm(stack.booking.GetSalon, pb.GetSalonRequest(salon_id=SALON))
        await warm(
            stack.booking.ListBookings, pb.ListBookingsRequest(salon_id=SALON)
        )  # creates the records of the salon's tag and the sub-tags
        before = await executed(stack, "booking")
        reply, source = await cached(stack.booking.BatchGetBookings(request))
        assert (list(reply.bookings), source) == (wanted, "miss")
        assert await executed(stack, "booking") == before + 1
        assert list((await warm(stack.booking.BatchGetBookings, request)).bookings) == wanted
        assert await executed(stack, "booking") == before + 1


async def test_a_batch_is_a_hit_only_if_all_its_bookings_are(stack: Stack) -> None:
    one, two = await made(stack, 2)
    await warm(
        stack.booking.GetBookingByCode, pb.GetBookingByCodeRequest(salon_id=SALON, booking_code=one.booking_code)
    )
    _, source = await cached(stack.booking.BatchGetBookings(batch(one.booking_code, two.booking_code)))
    assert source == "miss"
    call = stack.booking.BatchGetBookings(batch(one.booking_code), metadata=(("cache-control", "no-cache"),))
    assert await cached(call) == (pb.BatchGetBookingsResponse(bookings=[one]), "bypass")


async def test_the_error_names_the_first_code_without_a_booking(stack: Stack) -> None:
    [one] = await made(stack, 1)
    await salon(stack, "salon-2")
    error = await failure(stack.booking.BatchGetBookings(batch(one.booking_code, "bbbbbb", "AAAAAA")))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "BOOKING_NOT_FOUND")
    assert "BBBBBB" in error.message
    other = batch(one.booking_code, salon_id="salon-2")
    assert (await failure(stack.booking.BatchGetBookings(other))).reason == "BOOKING_NOT_FOUND"


async def test_a_batch_has_1_to_100_codes(stack: Stack) -> None:
    [one] = await made(stack, 1)
    assert len((await stack.booking.BatchGetBookings(batch(*[one.booking_code] * 100))).bookings) == 100
    for codes in ([], [one.booking_code] * 101):
        assert (await failure(stack.booking.BatchGetBookings(batch(*codes)))).fields == ["booking_codes"]
    assert (await failure(stack.booking.BatchGetBookings(batch("a b")))).fields == ["booking_codes[0]"]
