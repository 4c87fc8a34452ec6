"""Phone numbers: E.164 always, and national notation if the salon has a region_code."""

import re
from random import Random
from typing import Any

import grpc
import phonenumbers
import pytest

from libs.server import RpcError
from parlor.booking.v1 import booking_pb2 as pb
from parlor.messaging.v1 import messaging_pb2 as messaging
from services.phones import canonical, e164
from tests.stack import PHONE, SALON, Stack, booking_request, failure, message_request, salon

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


AMBIGUOUS = "the digits can be read as an international number, too: write "
# WhatsApp's IDs of customers abroad, and how to write them.
IDS = {
    "4915112345678": PHONE,
    "49 151 12345678": PHONE,
    "49-0151/12345678": PHONE,
    "447911123456": "+447911123456",
    "33612345678": "+33612345678",
    "12125551234": "+12125551234",
    "5511987654321": "+5511987654321",
    "551187654321": "+5511987654321",  # of a number that had no 9 yet
    "5215512345678": "+525512345678",  # as WhatsApp writes Mexico
    "5491123456789": "+5491123456789",
}


@pytest.mark.parametrize("region_code", ["DE", "US", "BR", ""])
async def test_digits_that_may_be_an_international_number_are_refused_everywhere(
    stack: Stack, region_code: str
) -> None:
    await salon(stack, region_code=region_code)
    for digits, written in IDS.items():
        calls: list[tuple[Any, str]] = [
            (stack.booking.CreateBooking(booking_request(customer_phone=digits)), "customer_phone"),
            (
                stack.booking.ListBookings(pb.ListBookingsRequest(salon_id=SALON, customer_phone=digits)),
                "customer_phone",
            ),
            (stack.booking.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, phone_number=digits)), "phone_number"),
            (stack.messaging.RecordMessage(message_request(phone_number=digits)), "phone_number"),
            (
                stack.messaging.GetConversation(messaging.GetConversationRequest(salon_id=SALON, phone_number=digits)),
                "phone_number",
            ),
            (
                stack.messaging.EraseCustomer(messaging.EraseCustomerRequest(salon_id=SALON, phone_number=digits)),
                "phone_number",
            ),
        ]
        for call, field in calls:
            error = await failure(call)
            assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"), digits
            assert error.fields == [field]
            assert AMBIGUOUS + written in error.message
    assert (await stack.booking.CreateBooking(booking_request(customer_phone=PHONE))).customer_phone == PHONE


async def test_a_refusal_offers_the_national_number_too(stack: Stack) -> None:
    await salon(stack, region_code="US")
    error = await failure(stack.booking.CreateBooking(booking_request(customer_phone="(201) 555-0123")))
    assert error.message.endswith("write +2015550123, or +12015550123 for a number of US")


async def test_a_trunk_prefix_after_the_country_code_makes_no_other_customer(stack: Stack) -> None:
    await salon(stack, region_code="DE")
    written = [
        "+49015112345678",
        "+49 0151 12345678",
        "+49 (0)151 12345678",
        "(+49) 0151/12345678",
        "0049 0151 12345678",
    ]
    for number in written:
        assert (await stack.booking.CreateBooking(booking_request(customer_phone=number))).customer_phone == PHONE
    listing = pb.ListBookingsRequest(salon_id=SALON, customer_phone=written[0])
    assert len((await stack.booking.ListBookings(listing)).bookings) == len(written)
    message = await stack.messaging.RecordMessage(message_request(phone_number=written[0]))
    assert message.phone_number == PHONE
    wanted = messaging.GetConversationRequest(salon_id=SALON, phone_number=written[1])
    assert (await stack.messaging.GetConversation(wanted)).conversation_id == message.conversation_id
    erase = pb.EraseCustomerRequest(salon_id=SALON, phone_number=written[2])
    assert (await stack.booking.EraseCustomer(erase)).bookings == len(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("+4407911123456", "+447911123456"),
        ("+330612345678", "+33612345678"),
        ("+810312345678", "+81312345678"),
        ("+3606201234567", "+36201234567"),
        ("+112125551234", "+12125551234"),
        ("+390612345678", "+390612345678"),  # Italy's numbers begin with 0
        ("+5215512345678", "+525512345678"),  # no longer valid, but WhatsApp's
        ("+551187654321", "+5511987654321"),
        ("+551112345678", "+5511912345678"),  # only landlines begin with 2 to 5
        ("+551132345678", "+551132345678"),  # a landline
        ("+541112345678", "+541112345678"),  # may be a landline: only WhatsApp means a mobile number
        ("+999123456789", "+999123456789"),
        ("+490123", "+490123"),
        ("+4900000000000", "+4900000000000"),
    ],
)
def test_e164_without_its_trunk_prefix_is_the_number_that_is_meant(written: str, meant: str) -> None:
    assert canonical(written) == meant


EXAMPLES = [
    (region, number)
    for region in sorted(phonenumbers.SUPPORTED_REGIONS)
    for kind in (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE)
    if (number := phonenumbers.example_number_for_type(region, kind)) is not None
]
COUNTRIES = sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)
OLD_IDS = ["5215512345678", "5213312345678", "551187654321", "552198765432"]


def formatted(number: phonenumbers.PhoneNumber) -> str:
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


async def read(number: str, region: str) -> str | None:
    """Return a number that a salon of a region gets, as E.164; None if it is refused."""

    async def region_code() -> str:
        return region

    try:
        return await e164("phone_number", number, region_code)
    except RpcError as error:
        assert error.reason == "INVALID_FIELD"
        return None


async def test_a_whatsapp_id_never_becomes_another_number_in_any_region() -> None:
    ids = sorted({formatted(number).removeprefix("+") for _, number in EXAMPLES}) + OLD_IDS
    assert len(ids) > 400
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for digits in ids[:: 1 if region in ("DE", "US", "BR", "IT") else 7] + OLD_IDS:
            assert await read(digits, region) in (None, f"+{digits}"), (digits, region)


async def test_every_region_writes_its_numbers_in_e164_and_mostly_in_national_notation() -> None:
    refused = []
    for region, number in EXAMPLES:
        assert canonical(formatted(number)) == formatted(number)
        national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
        found = await read(national, region)
        assert found in (None, formatted(number)), (national, region)
        refused += [national] if found is None else []
    assert len(refused) < 12, refused  # ambiguous


def test_a_trunk_prefix_is_dropped_in_every_region_that_has_one() -> None:
    kept = []
    for region, number in EXAMPLES:
        trunk = phonenumbers.ndd_prefix_for_region(region, True)
        national = phonenumbers.national_significant_number(number)
        if trunk and canonical(f"+{number.country_code}{trunk}{national}") != formatted(number):
            kept.append(region)
    assert kept == ["CO"]  # a carrier's code follows its 0


def test_what_is_canonical_stays_so() -> None:
    random = Random(1)
    for _ in range(20_000):
        number = f"+{random.choice(COUNTRIES)}{random.randrange(10 ** random.randint(5, 11))}"
        if re.fullmatch(r"\+[1-9][0-9]{6,14}", number):
            assert canonical(canonical(number)) == canonical(number), number
