"""A call of every RPC of the services, and of every list with each of its filters."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import grpc

from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2, messaging_pb2_grpc
from parlor.stats.v1 import stats_pb2, stats_pb2_grpc

SALON = {"salon_id": "salon-1"}
PHONE, USER = "+4915112345678", "DE.1"
START, END = {"seconds": 1_900_000_000}, {"seconds": 1_900_003_600}
PAST = {"seconds": 1_700_000_000}
PERIOD = {"start_time": START, "end_time": END}
LATER = {"start_time": {"seconds": 1_900_010_000}, "end_time": {"seconds": 1_900_013_600}}
ALWAYS = [{"day_of_week": day, "open_time": {}, "close_time": {"hours": 24}} for day in range(1, 8)]


def call_every_rpc(channels: Mapping[str, grpc.Channel], app_secret: str) -> None:
    """Call every RPC of an empty system; `channels` are those of booking, messaging and stats.

    Raises: grpc.RpcError.
    """
    booking = Caller(booking_pb2, booking_pb2_grpc.BookingServiceStub(channels["booking"]))
    messaging = Caller(messaging_pb2, messaging_pb2_grpc.MessagingServiceStub(channels["messaging"]))
    stats = Caller(stats_pb2, stats_pb2_grpc.StatsServiceStub(channels["stats"]))
    _call_booking(booking)
    _call_messaging(messaging, app_secret)
    booking("EraseCustomer", phone_number=PHONE)
    booking("EraseCustomer", user_id=USER)
    for rpc in stats_pb2.DESCRIPTOR.services_by_name["StatsService"].methods_by_name:
        stats(rpc, **PERIOD)


class Caller:
    """Calls RPCs of a service by name, with the salon's ID if the request has that field."""

    def __init__(self, messages: Any, stub: Any) -> None:
        """Take the module of the service's messages, and its stub."""
        self._messages = messages
        self._stub = stub

    def __call__(self, rpc: str, **fields: Any) -> Any:
        """Return the reply. Raises: grpc.RpcError."""
        request = getattr(self._messages, f"{rpc}Request")
        salon = SALON if "salon_id" in request.DESCRIPTOR.fields_by_name else {}
        return getattr(self._stub, rpc)(request(**(salon | fields)))

    def first(self, rpc: str, **fields: Any) -> None:
        """Call a server-streaming RPC, and cancel it after its first reply."""
        replies = self(rpc, **fields)
        next(replies)
        replies.cancel()

    def pages(self, rpc: str, **fields: Any) -> None:
        """Read the first page of a list with one row per page, and the next, if there is one."""
        reply = self(rpc, page_size=1, **fields)
        fields.pop("from_start", None)  # is only allowed without a page_token
        if reply.next_page_token:
            self(rpc, page_size=1, page_token=reply.next_page_token, **fields)

    def back(self, rpc: str, **fields: Any) -> None:
        """Read the first page of a list with one row per page, the next, if there is one, and the first again."""
        reply = self(rpc, page_size=1, **fields)
        if reply.next_page_token:
            reply = self(rpc, page_size=1, page_token=reply.next_page_token, **fields)
            self(rpc, page_size=1, page_token=reply.previous_page_token, **fields)


def _call_booking(call: Caller) -> None:
    pending, confirmed = booking_pb2.BOOKING_STATUS_PENDING, booking_pb2.BOOKING_STATUS_CONFIRMED
    for number in (1, 2):
        fields = {"phone_number_id": f"{number}", "name": "Salon", "time_zone": "Europe/Berlin"}
        call("UpsertSalon", salon={"salon_id": f"salon-{number}", **fields, "opening_hours": ALWAYS})
    for number in (1, 2, 3):
        call("UpsertResource", resource_id=f"chair-{number}", name="Chair")
    call("GetSalon")
    call("GetSalonByPhoneNumberId", phone_number_id="1")
    call("BatchGetSalons", salon_ids=["salon-1", "salon-2"])
    call.pages("ListSalons")
    call.pages("ListResources")
    call.pages("ListResources", active_only=True)
    for number in (1, 2):
        call("UpsertService", service_id=f"cut-{number}", name="Cut", duration={"seconds": 3600})
    call("GetService", service_id="cut-1")
    call.pages("ListServices")
    call.pages("ListServices", active_only=True)
    made = {"customer_phone": PHONE, **PERIOD}
    codes = [call("CreateBooking", **made, resource_id=f"chair-{number}").booking_code for number in (1, 2)]
    call("CreateBooking", **made, request_id="00000000-0000-4000-8000-000000000001")
    call("CreateBooking", customer_user_id=USER, **LATER, any_of_resource_ids=["chair-1", "chair-2"])
    call("CreateBooking", customer_name="Anna", start_time=LATER["start_time"], service_id="cut-1")
    held = call("CreateBooking", **made, resource_id="chair-3", hold_duration={"seconds": 600})
    names = {"salon_id": SALON["salon_id"], "booking_code": held.booking_code}
    call("UpdateBooking", booking={**names, "notes": "later"}, hold_duration={"seconds": 900})
    call("UpdateBooking", booking={**names, "service_id": "cut-1"})
    with suppress(grpc.RpcError):  # SLOT_UNAVAILABLE
        call("CreateBooking", **made, resource_id="chair-3")
    call("UpdateBookingStatus", booking_code=held.booking_code, status=booking_pb2.BOOKING_STATUS_CANCELLED)
    call("GetBookingByCode", booking_code=codes[0])
    call("BatchGetBookings", booking_codes=codes)
    for filters in (
        {},
        PERIOD,
        {"status": pending},
        {"status": pending, **PERIOD},
        {"customer_phone": PHONE},
        {"customer_phone": PHONE, "status": pending},
        {"customer_user_id": USER},
        {"resource_ids": ["chair-1", "chair-2"]},
        {"resource_ids": ["chair-1", "chair-2"], "statuses": [pending, confirmed], **PERIOD},
        {"statuses": [pending, confirmed]},
        {"statuses": [pending, confirmed], **PERIOD},
        {"overlapping": PERIOD},
        {"overlapping": PERIOD, "resource_ids": ["chair-1", "chair-2"], "statuses": [pending, confirmed]},
        {"updated_since": PAST},
        {"order_by": "update_time"},
        {"updated_since": PAST, "order_by": "update_time"},
        {"updated_since": PAST, "resource_ids": ["chair-1"], "statuses": [pending], "order_by": "update_time"},
    ):
        call.pages("ListBookings", **filters)
    for of in ({}, {"resource_id": "chair-1"}):
        time_off = call("CreateTimeOff", **LATER, **of).time_off
        call.pages("ListTimeOff", **of)
        call.pages("ListTimeOff", **LATER, **of)
    call("DeleteTimeOff", time_off_id=time_off.time_off_id)
    call("UpdateBookingStatus", booking_code=codes[0], status=confirmed)
    call("RescheduleBooking", booking_code=codes[0], resource_id="chair-3")
    call.pages("ListBookingEvents", booking_code=codes[0])
    call("DeleteService", service_id="cut-2")
    call("UpsertResource", resource_id="chair-4", name="Chair")
    call("DeleteResource", resource_id="chair-4")
    for filters in ({}, {"salon_id": ""}):
        call.pages("ListBookingChanges", **filters, from_start=True)
        call.first("WatchBookings", **filters)
    call("SearchAvailability", **PERIOD, duration={"seconds": 600})
    call("SearchAvailability", **PERIOD, duration={"seconds": 600}, resource_ids=["chair-1"])
    call("SearchAvailability", **PERIOD, service_id="cut-1", excluding_booking_code=codes[0])


def _call_messaging(call: Caller, app_secret: str) -> None:
    inbound: dict[str, Any] = {"direction": messaging_pb2.MESSAGE_DIRECTION_INBOUND}
    outbound: dict[str, Any] = {"direction": messaging_pb2.MESSAGE_DIRECTION_OUTBOUND}
    customer = {"phone_number": PHONE, "user_id": USER, "content": "hello"}
    first = call("RecordMessage", **customer, **inbound, whatsapp_id="wamid.1")
    for _ in range(2):  # the second is a repeat
        call("RecordMessage", **customer, **outbound, whatsapp_id="wamid.2")
    for number in range(2):
        other = {"phone_number": f"+491511234567{number}", "content": "hi"}
        call("RecordMessage", **other, **inbound, whatsapp_id=f"wamid.other-{number}")
    for whatsapp_id in ("wamid.2", "wamid.2", "wamid.unknown"):
        call("RecordMessageStatus", whatsapp_id=whatsapp_id, status=messaging_pb2.MESSAGE_STATUS_READ)
    for whatsapp_id in ("wamid.7", "wamid.2"):  # the second is that of another message
        unsent = call("RecordMessage", **customer, **outbound)
        for _ in range(2):
            call("RecordMessageFailed", message_id=unsent.message_id, error_code=1)
        with suppress(grpc.RpcError):  # WHATSAPP_ID_TAKEN
            call("RecordMessageSent", message_id=unsent.message_id, whatsapp_id=whatsapp_id)
    for payload in _webhook_bodies():
        signature = hmac.new(app_secret.encode(), payload, hashlib.sha256).hexdigest()
        call("IngestWebhook", payload=payload, signature=f"sha256={signature}")
    call.pages("ListWebhookFailures")
    call.pages("ReplayWebhookFailures")
    call("GetMessage", message_id=first.message_id)
    call("GetMessage", whatsapp_id="wamid.1")
    by_id, by_phone = {"conversation_id": first.conversation_id}, {"phone_number": PHONE}
    for name in (by_id, by_phone, {"user_id": USER}):
        call("GetConversation", **name)
        call("MarkConversationRead", **name)
    call("TagConversation", **by_id, add_tags=["vip"])
    call("AssignConversation", **by_id, assignee="anna")
    active: dict[str, Any] = {"status": messaging_pb2.CONVERSATION_STATUS_ACTIVE}
    both = [messaging_pb2.CONVERSATION_STATUS_ACTIVE, messaging_pb2.CONVERSATION_STATUS_CLOSED]
    for filters in (
        {},
        active,
        {"statuses": both},
        {"tag": "vip"},
        {"tags_any": ["vip", "new"]},
        {"tags_all": ["vip"], "statuses": both},
        {"unread_only": True},
        {"assignee": "anna"},
        {"unassigned": True},
        {"unassigned": True, "statuses": both},
        {"window_open": True},
        {"window_open": False},
        {"window_open": False, "statuses": both},
        {"query": "anna"},
        {"query": PHONE[:7]},
        {"query": "anna", "unread_only": True, "window_open": True},
    ):
        call.pages("ListConversations", **filters)
    around, time = {"around_message_id": first.message_id}, {"seconds": 4_000_000_000}
    for filters in ({}, by_id, by_phone, inbound):
        for place in (
            {},
            around,
            {"after_time": PAST},
            {"before_time": time},
            {"after_time": PAST, "before_time": time},
        ):
            call.pages("ListMessages", **filters, **place)
        call.back("ListMessages", **filters)
    call("MarkConversationRead", **by_id, up_to_message_id=first.message_id)
    for name in ({"customer_id": first.conversation_id}, by_phone, {"user_id": USER}):
        call("GetCustomer", **name)
    call("RecordOptOut", **by_phone, reason="STOP")
    for filters in (
        {},
        {"opted_out": True},
        {"query": "anna"},
        {"query": "+49151"},
        {"query": "anna", "opted_out": True},
        {"query": "+49151", "opted_out": False},
    ):
        call.pages("ListCustomers", **filters)
    call(
        "RecordMessage", phone_number="+4915112345699", user_id=USER, content="hi", **inbound, whatsapp_id="wamid.moved"
    )
    call("GetConversation", phone_number=PHONE)
    call.pages("SearchMessages", query="hello")
    call.pages("SearchMessages", query="helo")  # finds similar words
    call.pages("SearchMessages", query="the")
    for _ in range(2):
        call("RecordAiMessage", **by_id, role=messaging_pb2.AI_ROLE_USER, model="m", content="hello")
    call.pages("ListAiMessages", **by_id)
    call("UpdateConversationStatus", **by_id, status=messaging_pb2.CONVERSATION_STATUS_CLOSED)
    for filters in ({}, {"salon_id": ""}):
        call("ListMessageChanges", **filters)
        call.pages("ListMessageChanges", **filters, from_start=True)
        call.first("WatchMessages", **filters)
    call("EraseCustomer", phone_number=PHONE, user_id=USER)


def _webhook_bodies() -> list[bytes]:
    """Return bodies with a message, a status and an unreadable item, for a salon and for an unknown number."""
    when = {"timestamp": "1749416383"}
    message = {"from": PHONE[1:], "from_user_id": USER, "id": "wamid.3", "type": "text", "text": {"body": "hi"}, **when}
    status = {"id": "wamid.2", "status": "delivered", **when}
    items = {"messages": [message, {"id": "wamid.4"}, {"id": "wamid.5"}], "statuses": [status]}
    bodies = []
    for number in ("1", "unknown"):
        value = {"messaging_product": "whatsapp", "metadata": {"phone_number_id": number}, **items}
        entry = {"id": "1", "changes": [{"field": "messages", "value": value}]}
        bodies.append(json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode())
    return bodies
