"""UpdateBooking: customers, services, the end, and holds that are extended."""

import re

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from parlor.booking.v1 import booking_pb2 as pb
from tests.calendars import HOUR, MINUTE
from tests.keeping import OTHER_PHONE, at, book, clock, cut, move, opened, read, refused, stack, update
from tests.stack import PHONE, SALON, Fields, Stack, failure, rows
from tests.test_services import service

__all__ = ["clock", "stack"]


async def test_a_change_of_the_customer_or_of_notes_does_not_check_the_time(stack: Stack) -> None:
    await opened(stack)
    booking = await book(stack, 20, resource_id="anna", ignore_rules=True)
    assert (await update(stack, booking, customer_phone=OTHER_PHONE)).customer_phone == OTHER_PHONE
    assert (await update(stack, booking, notes="knocks")).notes == "knocks"
    await move(stack, booking, "CANCELLED")
    await stack.booking.DeleteResource(pb.DeleteResourceRequest(salon_id=SALON, resource_id="anna"))
    assert (await update(stack, booking, customer_phone=PHONE)).customer_phone == PHONE


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
    for mask in ("start_time", "resource_id", "status", "notes colour", "booking_code", PHONE, "Notes"):
        error = await failure(update(stack, booking, mask, notes="x"))
        assert (error.reason, error.fields) == ("INVALID_FIELD", ["update_mask"])
        assert not {PHONE, "colour", "Notes"} & set(re.split(r"[ ,:]+", error.message))
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
