"""Writes named by a request_id: repeated, they answer the first reply and write nothing."""

import asyncio
import time
from collections.abc import Callable
from functools import reduce
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as pb
from parlor.messaging.v1 import messaging_pb2
from tests.cache.outages import NOWHERE
from tests.cache.shop import until
from tests.stack import PHONE, SALON, Fields, Stack, booking_request, failure, message_request, rows, running, salon

Prepared = tuple[Callable[[Any], Any], Any, str]


async def prepared(stack: Stack, name: str) -> Prepared:
    """Return an RPC, a request that succeeds once, and the name of a text field whose change makes it another."""
    await salon(stack)
    booking, messaging = stack.booking, stack.messaging
    if name == "UpsertSalon":
        wanted = pb.Salon(salon_id="salon-2", phone_number_id="2", name="Two", time_zone="UTC")
        return booking.UpsertSalon, pb.UpsertSalonRequest(salon=wanted), "salon.name"
    if name == "CreateBooking":
        return booking.CreateBooking, booking_request(resource_id="anna"), "notes"
    if name == "UpdateBookingStatus":
        code = (await booking.CreateBooking(booking_request())).booking_code
        confirm: Fields = {"salon_id": SALON, "booking_code": code, "status": "BOOKING_STATUS_CONFIRMED"}
        return booking.UpdateBookingStatus, pb.UpdateBookingStatusRequest(**confirm), "etag"
    if name == "UpsertResource":
        anna: Fields = {"salon_id": SALON, "resource_id": "anna", "name": "Anna"}
        return booking.UpsertResource, pb.UpsertResourceRequest(**anna), "name"
    if name in ("UpsertService", "DeleteService"):
        cut: Fields = {"salon_id": SALON, "service_id": "cut"}
        upsert = pb.UpsertServiceRequest(**cut, name="Cut", duration=Duration(seconds=1800))
        if name == "UpsertService":
            return booking.UpsertService, upsert, "name"
        await booking.UpsertService(upsert)
        return booking.DeleteService, pb.DeleteServiceRequest(**cut), "service_id"
    if name == "DeleteResource":
        named: Fields = {"salon_id": SALON, "resource_id": "anna"}
        await booking.UpsertResource(pb.UpsertResourceRequest(**named, name="Anna"))
        return booking.DeleteResource, pb.DeleteResourceRequest(**named), "resource_id"
    if name in ("CreateTimeOff", "DeleteTimeOff"):
        times: Fields = {"start_time": Timestamp(seconds=1_800_000_000), "end_time": Timestamp(seconds=1_800_003_600)}
        create = pb.CreateTimeOffRequest(salon_id=SALON, **times)
        if name == "CreateTimeOff":
            return booking.CreateTimeOff, create, "reason"
        time_off_id = (await booking.CreateTimeOff(create)).time_off.time_off_id
        delete = pb.DeleteTimeOffRequest(salon_id=SALON, time_off_id=time_off_id)
        return booking.DeleteTimeOff, delete, "time_off_id"
    if name == "RescheduleBooking":
        code = (await booking.CreateBooking(booking_request(resource_id="anna"))).booking_code
        to_ben: Fields = {"salon_id": SALON, "booking_code": code, "resource_id": "ben", "ignore_rules": True}
        return booking.RescheduleBooking, pb.RescheduleBookingRequest(**to_ben), "reason"
    if name == "EraseCustomer":
        await booking.CreateBooking(booking_request(request_id=str(uuid4())))
        return booking.EraseCustomer, pb.EraseCustomerRequest(salon_id=SALON, phone_number=PHONE), "phone_number"
    if name == "RecordMessage":
        template: Fields = {"direction": "MESSAGE_DIRECTION_OUTBOUND", "type": "MESSAGE_TYPE_TEMPLATE"}
        return messaging.RecordMessage, message_request("", **template), "content"
    conversation_id = (await messaging.RecordMessage(message_request())).conversation_id
    if name == "RecordMessageStatus":
        read: Fields = {"salon_id": SALON, "whatsapp_id": "wamid.9", "status": "MESSAGE_STATUS_READ"}
        return messaging.RecordMessageStatus, messaging_pb2.RecordMessageStatusRequest(**read), "whatsapp_id"
    if name == "UpdateConversationStatus":
        close: Fields = {"salon_id": SALON, "phone_number": PHONE, "status": "CONVERSATION_STATUS_CLOSED"}
        return messaging.UpdateConversationStatus, messaging_pb2.UpdateConversationStatusRequest(**close), "etag"
    fields: Fields = {"salon_id": SALON, "conversation_id": conversation_id, "model": "m", "role": "AI_ROLE_USER"}
    return messaging.RecordAiMessage, messaging_pb2.RecordAiMessageRequest(**fields), "content"


def contents(stack: Stack) -> Any:
    """Return all rows of the database, but for the replies themselves."""
    tables = (
        "salons",
        "resources",
        "services",
        "time_off",
        "bookings",
        "booking_events",
        "booking_changes",
        "conversations",
        "messages",
        "message_status_events",
        "ai_messages",
        "message_changes",
    )
    return [rows(stack.database_url, f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]


@pytest.mark.parametrize(
    "name",
    [
        "UpsertSalon",
        "CreateBooking",
        "UpdateBookingStatus",
        "UpsertResource",
        "DeleteResource",
        "UpsertService",
        "DeleteService",
        "CreateTimeOff",
        "DeleteTimeOff",
        "RescheduleBooking",
        "EraseCustomer",
        "RecordMessage",
        "RecordMessageStatus",
        "UpdateConversationStatus",
        "RecordAiMessage",
    ],
)
async def test_a_repeat_gets_the_same_reply_and_writes_once(stack: Stack, name: str) -> None:
    rpc, request, field = await prepared(stack, name)
    request.request_id = str(uuid4())
    replies = await asyncio.gather(*(rpc(request) for _ in range(3)))
    written = contents(stack)
    replies.append(await rpc(request))
    assert all(reply == replies[0] for reply in replies)
    assert contents(stack) == written

    *parents, last = field.split(".")
    others = {"phone_number": "+4915100000000", "time_off_id": str(uuid4())}
    setattr(reduce(getattr, parents, request), last, others.get(last, "other"))
    error = await failure(rpc(request))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert error.fields == ["request_id"]
    assert contents(stack) == written


async def test_a_request_id_used_by_another_rpc_is_refused(stack: Stack) -> None:
    await salon(stack)
    used = str(uuid4())
    await stack.booking.CreateBooking(booking_request(request_id=used))
    update = pb.UpdateBookingStatusRequest(
        salon_id=SALON, booking_code="ABC", status=pb.BOOKING_STATUS_CONFIRMED, request_id=used
    )
    assert (await failure(stack.booking.UpdateBookingStatus(update))).reason == "REQUEST_ID_REUSED"


WAMID = "wamid.HBgNNDkxNTExMjM0NTY3OBUCABIYFjNFQjBDMTIzNDU2Nzg5QUJDREVGMDAA"
TEXTS = [
    WAMID,
    WAMID[:-1] + "B",
    "a" * 128,
    "a" * 127 + "b",
    " a",
    "a ",
    "a",
    "A",
    "~!@#$%^&*()'\"\\",
    "00000000000040008000000000000001",
    "{00000000-0000-4000-8000-000000000001}",
    "00000000-0000-4000-8000-000000000001",
    "urn:uuid:00000000-0000-4000-8000-000000000001",
    "00000000-0000-4000-8000-00000000000g",
]


async def test_any_printable_ascii_text_may_be_a_request_id(stack: Stack) -> None:
    await salon(stack)
    bookings = [await stack.booking.CreateBooking(booking_request(request_id=text)) for text in TEXTS]
    assert len({booking.booking_id for booking in bookings}) == len(TEXTS)
    for text, booking in zip(TEXTS, bookings, strict=True):
        assert await stack.booking.CreateBooking(booking_request(request_id=text)) == booking
        assert (await failure(stack.booking.CreateBooking(booking_request(request_id=text, notes="other")))).reason == (
            "REQUEST_ID_REUSED"
        )
    messages = [
        await stack.messaging.RecordMessage(message_request(f"wamid.{number}", request_id=text))
        for number, text in enumerate(TEXTS)
    ]
    for number, (text, message) in enumerate(zip(TEXTS, messages, strict=True)):
        again = message_request(f"wamid.{number}", request_id=text)
        assert await stack.messaging.RecordMessage(again) == message
        other = stack.messaging.RecordMessage(message_request(f"wamid.{number}", request_id=text, content="other"))
        assert (await failure(other)).reason == "REQUEST_ID_REUSED"


async def test_a_uuid_stays_the_key_of_its_reply(stack: Stack) -> None:
    await salon(stack)
    used = "0A000000-0000-4000-8000-00000000000B"
    first = await stack.booking.CreateBooking(booking_request(request_id=used))
    kept = rows(stack.database_url, "SELECT request_id::text FROM booking_requests")
    assert kept == [(used.lower(),)]
    await stack.booking.CreateBooking(booking_request(request_id=WAMID))
    assert len(rows(stack.database_url, "SELECT FROM booking_requests")) == 2
    assert await stack.booking.CreateBooking(booking_request(request_id=used)) == first


@pytest.mark.parametrize("text", ["a" * 129, "ä", "a\n", "\t", "a\x7f", "\0", "\u200b", "wamid.é", "\uff41"])
async def test_a_request_id_that_is_no_printable_ascii_text_is_refused(stack: Stack, text: str) -> None:
    await salon(stack)
    for call in (
        stack.booking.CreateBooking(booking_request(request_id=text)),
        stack.messaging.RecordMessage(message_request(request_id=text)),
    ):
        error = await failure(call)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert error.fields == ["request_id"]
        assert "1 to 128 printable ASCII characters" in error.message
    assert rows(stack.database_url, "SELECT FROM bookings") == []


async def test_a_request_id_is_a_salons_own(stack: Stack) -> None:
    used = str(uuid4())
    for name in ("salon-1", "salon-2"):
        await salon(stack, name)
        booking = await stack.booking.CreateBooking(booking_request(salon_id=name, request_id=used))
        assert booking.salon_id == name


async def test_the_reply_of_a_refused_write_is_not_stored(stack: Stack) -> None:
    await salon(stack)
    taken = await stack.booking.CreateBooking(booking_request(resource_id="anna"))
    again = booking_request(resource_id="anna", request_id=str(uuid4()))
    for _ in range(2):
        assert (await failure(stack.booking.CreateBooking(again))).reason == "SLOT_UNAVAILABLE"
    cancel: Fields = {"booking_code": taken.booking_code, "status": "BOOKING_STATUS_CANCELLED"}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(salon_id=SALON, **cancel))
    booking = await stack.booking.CreateBooking(again)
    assert await stack.booking.CreateBooking(again) == booking


async def test_a_repeat_gets_the_first_reply_even_if_the_booking_has_changed(stack: Stack) -> None:
    await salon(stack)
    request = booking_request(resource_id="anna", request_id=str(uuid4()))
    first = await stack.booking.CreateBooking(request)
    cancel: Fields = {"booking_code": first.booking_code, "status": "BOOKING_STATUS_CANCELLED"}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(salon_id=SALON, **cancel))
    await stack.booking.CreateBooking(booking_request(resource_id="anna"))
    assert await stack.booking.CreateBooking(request) == first


async def test_after_24_hours_a_request_id_may_name_another_request(stack: Stack) -> None:
    await salon(stack)
    used = str(uuid4())
    first = await stack.booking.CreateBooking(booking_request(request_id=used))
    rows(stack.database_url, "UPDATE booking_requests SET created_at = now() - interval '1 day' RETURNING 1")
    second = await stack.booking.CreateBooking(booking_request(request_id=used, notes="another"))
    assert second.booking_id != first.booking_id
    assert await stack.booking.CreateBooking(booking_request(request_id=used, notes="another")) == second


async def test_in_wait_mode_a_repeat_is_not_answered_before_its_write(
    database_url: str,
) -> None:
    async with running(database_url, NOWHERE, cache={"without": "wait", "poll": 1000}) as stack:
        await salon(stack)
        request = booking_request(request_id=str(uuid4()))
        first = asyncio.ensure_future(stack.booking.CreateBooking(request))
        await until(lambda: rows(database_url, "SELECT FROM bookings"))
        began = time.monotonic()
        repeated = await stack.booking.CreateBooking(request)
        assert time.monotonic() - began >= 1  # no drain
        assert await first == repeated
