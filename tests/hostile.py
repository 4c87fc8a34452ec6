"""A valid request of every RPC, and hostile values of its fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.ops.v1 import ops_pb2
from parlor.stats.v1 import stats_pb2
from tests.stack import PHONE, SALON, Stack, booking_request, message_request, salon, unary

OWN = {"booking": booking_pb2, "messaging": messaging_pb2, "stats": stats_pb2}
TIMES = {"start_time": {"seconds": 1_700_000_000}, "end_time": {"seconds": 1_700_086_400}}
DATES = [{"date": {"year": 2026, "month": 12, "day": 24}, "open_time": {"hours": 9}, "close_time": {"hours": 12}}]
DAYS = [{"day_of_week": 1, "open_time": {"hours": 9}, "close_time": {"hours": 18}}]

WORDS = [
    *("", " ", "\0", "a\0b", "+", "0151234567", "+0151234567", "4915112345678", "\u202e\ufeff", "💇" * 100),
    *("'", "'; DROP TABLE bookings; --", "%s", "%(id)s", "{salon-1}", "*", "query:", "query:[", "../..", "\n"),
    *("00000000-0000-0000-0000-00000000000g", "6E6E3A60-43BA-4AB9-8D2A-7B1A3D6F2C11", "x" * 257, "x" * 1_000_000),
    *("bnVsbA==", "W10=", "WyJhIiwxLCJiIl0=", "nobody", "Europe/Atlantis", "EURO"),
]
MOMENTS = [
    *((seconds, 0) for seconds in (-1, 253_370_764_800, 253_402_300_800, 2**63 - 1, -(2**63), 1_699_999_999)),
    *((1_700_000_000, nanos) for nanos in (-1, 2_000_000_000, 2**31 - 1, -(2**31))),
    *((0, -1), (253_402_300_799, 999_999_999), (1_700_086_400, 0), (1_700_086_401, 0)),
]
HOSTILE: dict[int, list[Any]] = {
    FieldDescriptor.TYPE_STRING: WORDS,
    FieldDescriptor.TYPE_BYTES: [b"", b"\0", b"\xff", b"{}", b"x" * 1_000_000, b"x" * (8 * 1024 * 1024 + 1)],
    FieldDescriptor.TYPE_BOOL: [True, False],
    FieldDescriptor.TYPE_INT32: [-1, -(2**31), 201, 2**31 - 1],
    FieldDescriptor.TYPE_INT64: [-1, -(2**63), 2**63 - 1],
    FieldDescriptor.TYPE_BOOL: [False, True],
    FieldDescriptor.TYPE_ENUM: [0, -1, 6, 99, 2**31 - 1],
}


@dataclass
class Rpc:
    """One RPC: a call that takes bytes, and the type of its requests."""

    method: MethodDescriptor
    call: Any

    @property
    def kind(self) -> type[Message]:
        """The class of its requests."""
        return GetMessageClass(self.method.input_type)

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return bool(self.method.GetOptions().idempotency_level == self.method.GetOptions().NO_SIDE_EFFECTS)


def rpcs(name: str, channel: grpc.aio.Channel, ops: grpc.aio.Channel) -> list[Rpc]:
    """Return every RPC of a service, including its OpsService, which has a separate channel."""
    services = [(OWN[name].DESCRIPTOR, channel), (ops_pb2.DESCRIPTOR, ops)]
    return [
        Rpc(method, (first if method.server_streaming else unary)(port, f"/{service.full_name}/{method.name}"))
        for file, port in services
        for service in file.services_by_name.values()
        for method in service.methods
    ]


def first(channel: grpc.aio.Channel, method: str) -> Callable[[bytes], Any]:
    """Return a server-streaming method of a channel as it takes bytes and returns the first reply."""
    call: Any = channel.unary_stream(method)

    async def read(data: bytes) -> Any:
        replies = call(data)
        try:
            return await replies.read()
        finally:
            replies.cancel()

    return read


def mine(**fields: Any) -> dict[str, Any]:
    """Return the fields of a request for the salon."""
    return {"salon_id": SALON, **fields}


async def valid_requests(stack: Stack) -> dict[str, dict[str, Any]]:
    """Fill the database, and return fields of each RPC that make it succeed; those of IngestWebhook are unsigned."""
    await salon(stack)
    code = (await stack.booking.CreateBooking(booking_request(resource_id="anna"))).booking_code
    moving = (await stack.booking.CreateBooking(booking_request())).booking_code
    for name in ("anna", "dora"):
        await stack.booking.UpsertResource(
            booking_pb2.UpsertResourceRequest(salon_id=SALON, resource_id=name, name=name)
        )
    for name in ("cut", "colour"):
        await stack.booking.UpsertService(
            booking_pb2.UpsertServiceRequest(**mine(service_id=name, name=name, duration={"seconds": 3600}))
        )
    time_off = (await stack.booking.CreateTimeOff(booking_pb2.CreateTimeOffRequest(**mine(**TIMES)))).time_off
    message = await stack.messaging.RecordMessage(message_request())
    conversation_id = message.conversation_id
    unsent, failing = [
        await stack.messaging.RecordMessage(message_request("", direction="MESSAGE_DIRECTION_OUTBOUND"))
        for _ in range(2)
    ]
    other = {"salon_id": "salon-2", "phone_number_id": "2", "name": "Two", "time_zone": "Asia/Tokyo"}
    outputs = {"create_time": TIMES["start_time"], "update_time": TIMES["start_time"]}
    cost = {"cost_micros": 7, "currency_code": "EUR"}
    tokens = {"prompt_tokens": 1, "completion_tokens": 1, "latency_ms": 1}
    texts = {"customer_name": "Zoë", "service_name": "Cut", "notes": "-"}
    short, long = {"seconds": 600}, {"seconds": 3600}
    slots = {"duration": long, "step": short, "buffer_before": short, "buffer_after": short, "minimum_notice": short}
    lengths = {"duration": long, "buffer_before": short, "buffer_after": short}
    price = {"price_micros": 7, "currency_code": "EUR"}
    filters = {"customer_user_id": "DE.1", "resource_ids": ["anna"], "statuses": [1], "overlapping": TIMES}
    filters |= {"updated_since": TIMES["start_time"], "order_by": "update_time"}
    to_customer = {"phone_number": PHONE, "user_id": "US.1", "direction": 2, "type": 14, "content": "hi"}
    answer = {"whatsapp_id": "wamid.2", "media_id": "1", "reply_to_whatsapp_id": "wamid.1"}
    event = {"error_code": 1, "error_title": "x", "pricing_category": "utility", "billable": True}
    event |= {"conversation_origin": "utility"}
    of_customer = {"conversation_id": conversation_id, "phone_number": PHONE}
    inbox = {"statuses": [1], "tags_any": ["vip"], "tags_all": ["vip"], "window_open": True, "query": "anna"}
    around = {
        "around_message_id": message.message_id,
        "after_time": TIMES["start_time"],
        "before_time": TIMES["end_time"],
    }
    ai_message = {"conversation_id": conversation_id, "model": "m", "role": 2, "content": "hi"}
    return {
        "UpsertSalon": {
            "salon": {**other, **outputs, "region_code": "JP", "opening_hours": DAYS, "special_hours": DATES}
        },
        "UpsertResource": mine(resource_id="ben", name="Ben", working_hours=DAYS, special_hours=DATES),
        "ListResources": mine(page_size=10, active_only=True),
        "DeleteResource": mine(resource_id="dora", etag="1"),
        "UpsertService": mine(service_id="cut", name="Cut", resource_ids=["anna"], **lengths, **price),
        "GetService": mine(service_id="cut"),
        "ListServices": mine(page_size=10, active_only=True),
        "DeleteService": mine(service_id="colour", etag="1"),
        "CreateTimeOff": mine(resource_id="anna", reason="-", **TIMES),
        "ListTimeOff": mine(resource_id="anna", page_size=10, **TIMES),
        "DeleteTimeOff": mine(time_off_id=time_off.time_off_id),
        "SearchAvailability": mine(**TIMES, **slots, resource_ids=["anna"], page_size=10),
        "GetSalon": mine(),
        "GetSalonByPhoneNumberId": {"phone_number_id": f"10{SALON}"},
        "ListSalons": {"page_size": 10},
        "CreateBooking": mine(
            **TIMES, **texts, customer_phone=PHONE, resource_id="cleo", hold_duration=short, ignore_rules=True
        ),
        "GetBookingByCode": mine(booking_code=code),
        "BatchGetSalons": {"salon_ids": [SALON]},
        "BatchGetBookings": mine(booking_codes=[code]),
        "ListBookingEvents": mine(booking_code=code, page_size=10),
        "RescheduleBooking": mine(**TIMES, booking_code=moving, resource_id="ben", etag="1", ignore_rules=True),
        "UpdateBooking": {
            **{"booking": {**mine(booking_code=moving), **texts}, "update_mask": {"paths": ["notes", "customer_name"]}},
            **{"etag": "2", "actor": "bot", "reason": "-"},
        },
        "EraseCustomer": mine(phone_number="+4915100000000"),
        "ListBookings": mine(**TIMES, page_size=10, status=1, customer_phone=PHONE, **filters),
        "ListBookingChanges": mine(page_size=10),
        "WatchBookings": mine(),
        "ListMessageChanges": mine(page_size=10),
        "WatchMessages": mine(),
        "UpdateBookingStatus": mine(booking_code=code, status=2, etag="1"),
        "RecordMessage": mine(**to_customer, **answer, **cost, send_time=TIMES["start_time"]),
        "RecordMessageStatus": mine(whatsapp_id="wamid.1", status=4, event_time=TIMES["start_time"], **event, **cost),
        "RecordMessageSent": mine(message_id=unsent.message_id, whatsapp_id="wamid.unsent"),
        "RecordMessageFailed": mine(message_id=failing.message_id, error_code=1, error_title="x", error_details="y"),
        "GetMessage": mine(message_id=message.message_id, whatsapp_id="wamid.1"),
        "ListWebhookFailures": mine(page_size=10),
        "ReplayWebhookFailures": mine(page_size=10),
        "IngestWebhook": {"payload": b"{}", "signature": "sha256=f1fb8d4ba7cc4cf2"},
        "GetConversation": mine(**of_customer, message_limit=5),
        "ListConversations": mine(**inbox, page_size=10, status=1, tag="vip", unread_only=True, assignee="anna"),
        "UpdateConversationStatus": mine(**of_customer, status=2),
        "AssignConversation": mine(**of_customer, assignee="anna"),
        "TagConversation": mine(**of_customer, add_tags=["vip"], remove_tags=["new"]),
        "MarkConversationRead": mine(**of_customer, up_to_message_id=message.message_id),
        "SearchMessages": mine(query="hi", page_size=10),
        "ListMessages": mine(**of_customer, **around, page_size=10, direction=1),
        "RecordAiMessage": mine(**ai_message, **cost, **tokens, booking_code=code),
        "ListAiMessages": mine(conversation_id=conversation_id, page_size=10),
        "GetCustomer": mine(customer_id=conversation_id, phone_number=PHONE),
        "ListCustomers": mine(opted_out=False, query="anna", page_size=10),
        "RecordOptOut": mine(
            customer_id=conversation_id, phone_number=PHONE, event_time=TIMES["start_time"], reason="-"
        ),
        "GetSalonStats": mine(**TIMES),
        "ListBookingStats": mine(**TIMES, bucket=1),
        "ListConversationStats": mine(**TIMES, bucket=2),
        "GetMessageDirectionStats": mine(**TIMES),
        "GetAiAnalytics": mine(**TIMES, bucket=1),
        "GetCacheStatistics": {},
        "GetDatabaseMetrics": {},
        "InvalidateSalon": mine(),
        "InvalidateNamespace": {"namespace": "booking"},
        "InvalidatePattern": {"pattern": "query:booking:*"},
    }


def hostile(valid: Message) -> Iterator[tuple[str, bytes]]:
    """Yield requests with one hostile field: the path of the field, and the bytes."""
    for path, value in _spoilt(valid, ""):
        yield path, value.SerializeToString()
    for field in valid.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in (b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80"):  # the field again: the last one counts
                tag = bytes([field.number << 3 | 2, len(text)])
                yield "", valid.SerializeToString() + tag + text


def _spoilt(message: Message, path: str) -> Iterator[tuple[str, Message]]:
    for field in message.DESCRIPTOR.fields:
        name = f"{path}{field.name}"
        for spoil in _ways(message, field):
            copy = type(message)()
            copy.CopyFrom(message)
            spoil(copy)
            yield name, copy
        if field.message_type and field.message_type.full_name != Timestamp.DESCRIPTOR.full_name:
            inner = getattr(message, field.name)
            for deeper, part in _spoilt(inner[0] if field.is_repeated else inner, f"{name}."):
                copy = type(message)()
                copy.CopyFrom(message)
                target = getattr(copy, field.name)
                (target[0] if field.is_repeated else target).CopyFrom(part)
                yield deeper, copy


def _ways(message: Message, field: Any) -> Iterator[Any]:
    """Yield functions that spoil a field of a copy of a message."""
    yield lambda copy: copy.ClearField(field.name)
    if field.is_repeated:
        first: Any = next(iter(getattr(message, field.name)), "x")
        yield lambda copy: getattr(copy, field.name).extend([first] * 1000)
        yield lambda copy: getattr(copy, field.name).extend([type(first)()] * 60)
    elif field.message_type is None:
        for value in HOSTILE[field.type]:
            yield lambda copy, value=value: setattr(copy, field.name, value)
    elif field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
        for seconds, nanos in MOMENTS:
            moment = Timestamp(seconds=seconds, nanos=nanos)
            yield lambda copy, moment=moment: getattr(copy, field.name).CopyFrom(moment)
