"""Phone numbers: E.164 always, and national notation if the salon has a region_code."""

import grpc
import pytest

from parlor.booking.v1 import booking_pb2 as pb
from tests.stack import PHONE, SALON, Stack, booking_request, failure, salon

WRITTEN = ["+4915112345678", "+49 1511 2345678", "0151 12345678", "0151/123 456 78", "  +49 (0) 151-12345678 "]


@pytest.mark.parametrize("region_code", ["DE", ""])
async def test_a_number_in_any_notation_is_stored_and_found_as_e164(stack: Stack, region_code: str) -> None:
    await salon(stack, region_code=region_code)
    made = 0
    for number in WRITTEN:
        request = booking_request(customer_phone=number)
        listing = pb.ListBookingsRequest(salon_id=SALON, customer_phone=number)
        if region_code or "+" in number:
            made += 1
            assert (await stack.booking.CreateBooking(request)).customer_phone == PHONE
            assert len((await stack.booking.ListBookings(listing)).bookings) == made
            continue
        erase = pb.EraseCustomerRequest(salon_id=SALON, phone_number=number)
        for call, field in (
            (stack.booking.CreateBooking(request), "customer_phone"),
            (stack.booking.ListBookings(listing), "customer_phone"),
            (stack.booking.EraseCustomer(erase), "phone_number"),
        ):
            error = await failure(call)
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
            assert error.fields == [field]
            assert "region_code" in error.message


async def test_an_invalid_number_is_refused(stack: Stack) -> None:
    await salon(stack, region_code="DE")
    for number in ("110", "anna", "0151", "+", "+49 1", "0151 12345678 ext. 5", "\0", "+999 123456789", "1" * 40):
        error = await failure(stack.booking.CreateBooking(booking_request(customer_phone=number)))
        assert (error.reason, error.fields) == ("INVALID_FIELD", ["customer_phone"]), number


async def test_a_changed_region_applies_at_once(stack: Stack) -> None:
    national = booking_request(customer_phone="03-1234-5678")
    assert (await failure(stack.booking.CreateBooking(national))).reason == "SALON_NOT_FOUND"
    await salon(stack)
    assert (await failure(stack.booking.CreateBooking(national))).fields == ["customer_phone"]
    await salon(stack, region_code="JP")
    assert (await stack.booking.CreateBooking(national)).customer_phone == "+81312345678"
