"""The booking service, through its stub."""

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import SALON, Stack, booking_request, cached, salon


async def test_a_booking_is_found_by_its_code_and_then_cached(stack: Stack) -> None:
    await salon(stack)
    booking = await stack.booking.CreateBooking(booking_request())
    wanted = pb.GetBookingByCodeRequest(salon_id=SALON, booking_code=booking.booking_code.lower())
    assert await cached(stack.booking.GetBookingByCode(wanted)) == (booking, "miss")
    assert await cached(stack.booking.GetBookingByCode(wanted)) == (booking, "hit")
