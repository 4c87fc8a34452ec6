"""Every mutation against every cached read: the next reply shows the change, and other replies stay cached."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.booking.v1 import booking_pb2 as booking
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.ops.v1 import ops_pb2 as ops
from parlor.stats.v1 import stats_pb2 as stats
from tests.stack import (
    PHONE,
    SALON,
    Fields,
    Stack,
    booking_request,
    message_request,
    rows,
    running,
    salon,
    webhook_body,
)
from tests.test_webhook import signed, text
from tests.test_webhook import status as whatsapp_status

NOON, HOUR = 1_800_000_000, 3600
MINE, OTHERS, NEW, LATER = PHONE, "+4915100000002", "+4915100000003", "+4915100000004"
USER, NEW_CODE = "DE.1", "ZZZZZZ"
USER_ONLY: Fields = {"phone_number": "", "user_id": USER}
# Reads that depend on all conversations, or all messages, of a salon.
INBOX: dict[str, Fields] = {
    "conversations": {},
    "conversations, open": {"window_open": True},
    "conversations, unread": {"unread_only": True, "statuses": [1, 2]},
    "conversations, found": {"query": MINE[:6]},
}
WHOLE_CONVERSATIONS = {*INBOX, "conversation by user_id", "customers", "customer by user_id"}
WHOLE_MESSAGES = {"messages", "messages, around", "search", "search, similar"}


class Read(NamedTuple):
    """A cached read: its service, its RPC and its request."""

    service: str
    rpc: Any
    request: Any


class Fresh:
    """A salon and its cached reads by name.

    It has two bookings and two expired holds of one resource, two customers with a phone number and one without. Reads
    of `new` and `later` find nothing at first.
    """

    def __init__(self, stack: Stack, codes: dict[str, str], ids: dict[str, str], created: int, message_id: str) -> None:
        """Take the codes of bookings and the IDs of conversations and of a message; a booking was `created` first."""
        self.stack, self.codes, self.ids, self.message_id = stack, codes, ids, message_id
        self.reads = {**self._booking_reads(created), **self._messaging_reads()}

    def _booking_reads(self, created: int) -> dict[str, Read]:
        service = self.stack.booking
        of_salon: Fields = {"salon_id": SALON}
        days: Fields = {"start_time": {"seconds": created - 86_400}, "end_time": {"seconds": created + 86_400}}
        by_phone = booking.GetSalonByPhoneNumberIdRequest(phone_number_id=f"10{SALON}")
        reads = {
            "salon": Read("booking", service.GetSalon, booking.GetSalonRequest(**of_salon)),
            "salon by phone_number_id": Read("booking", service.GetSalonByPhoneNumberId, by_phone),
            "bookings": Read("booking", service.ListBookings, booking.ListBookingsRequest(**of_salon)),
            "resources": Read("booking", service.ListResources, booking.ListResourcesRequest(**of_salon)),
            "time off": Read("booking", service.ListTimeOff, booking.ListTimeOffRequest(**of_salon)),
            "service": Read("booking", service.GetService, booking.GetServiceRequest(**of_salon, service_id="cut")),
            "services": Read("booking", service.ListServices, booking.ListServicesRequest(**of_salon)),
            "stats": Read(
                "stats", self.stack.stats.ListBookingStats, stats.ListBookingStatsRequest(**of_salon, **days)
            ),
        }
        for name, code in self.codes.items():
            one: Fields = {"salon_id": SALON, "booking_code": code}
            reads[name] = Read("booking", service.GetBookingByCode, booking.GetBookingByCodeRequest(**one))
            if name != "new booking":  # a booking that does not exist has no events to cache
                events = booking.ListBookingEventsRequest(**one)
                reads[f"events of {name}"] = Read("booking", service.ListBookingEvents, events)
        return reads

    def _messaging_reads(self) -> dict[str, Read]:
        service = self.stack.messaging
        of_salon: Fields = {"salon_id": SALON}
        phones = {"mine": MINE, "other": OTHERS, "new": NEW, "later": LATER}
        names: dict[str, Fields] = {
            **{f"of {name}, by id": {"conversation_id": found} for name, found in self.ids.items()},
            **{f"of {name}, by phone": {"phone_number": phone} for name, phone in phones.items()},
        }
        lists: dict[str, tuple[Any, Any]] = {
            "conversation by user_id": (
                service.GetConversation,
                messaging.GetConversationRequest(**of_salon, user_id=USER),
            ),
            "customer by user_id": (service.GetCustomer, messaging.GetCustomerRequest(**of_salon, user_id=USER)),
            "customers": (service.ListCustomers, messaging.ListCustomersRequest(**of_salon)),
            "messages": (service.ListMessages, messaging.ListMessagesRequest(**of_salon)),
            "messages, around": (
                service.ListMessages,
                messaging.ListMessagesRequest(**of_salon, around_message_id=self.message_id),
            ),
            "search": (service.SearchMessages, messaging.SearchMessagesRequest(**of_salon, query="hi")),
            "search, similar": (service.SearchMessages, messaging.SearchMessagesRequest(**of_salon, query="hix")),
        }
        for name, filters in INBOX.items():
            lists[name] = (service.ListConversations, messaging.ListConversationsRequest(**of_salon, **filters))
        for name, named in names.items():
            found = messaging.GetConversationRequest(**of_salon, **named)
            lists[f"conversation {name}"] = (service.GetConversation, found)
            one = {field.replace("conversation", "customer"): value for field, value in named.items()}
            customer = messaging.GetCustomerRequest(**of_salon, **one)
            lists[f"customer {name}"] = (service.GetCustomer, customer)
            lists[f"messages {name}"] = (service.ListMessages, messaging.ListMessagesRequest(**of_salon, **named))
        for name, conversation_id in self.ids.items():
            request = messaging.ListAiMessagesRequest(**of_salon, conversation_id=conversation_id)
            lists[f"AI messages of {name}"] = (service.ListAiMessages, request)
        return {name: Read("messaging", *read) for name, read in lists.items()}

    def of(self, *names: str) -> set[str]:
        """Return the reads whose names have these endings."""
        return {read for read in self.reads if read.endswith(names)}

    async def look(self, name: str, **options: Any) -> tuple[str, bool]:
        """Return the reply of a read, and whether it came from the cache."""
        service, rpc, request = self.reads[name]
        cache = self.stack.servers[service].cache
        misses = cache.counters.misses  # a not-found reply may take two reads, one of which may hit
        try:
            reply = await rpc(request, **options)
            if service == "stats":
                reply.ClearField("as_of")
            shown = str(reply)
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
            shown = "nothing"
        await cache.settle()
        return shown, cache.counters.misses == misses

    async def missed(self, write: Callable[[], Awaitable[Any]]) -> set[str]:
        """Cache every read, write, and return the reads that are no longer cached; all replies must be current."""
        for name in self.reads:
            async with asyncio.timeout(10):
                while not (await self.look(name))[1]:
                    pass
        await write()
        looks = {name: await self.look(name) for name in self.reads}
        for name, (shown, _) in looks.items():
            now, _ = await self.look(name, metadata=(("cache-control", "no-cache"),))
            assert (name, shown) == (name, now)
        return {name for name, (_, hit) in looks.items() if not hit}


@pytest.fixture
def expiry_at_start_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the background job that ends expired holds run when the server starts, and not again in the test."""
    monkeypatch.setattr("services.booking.expiry.EVERY_SECONDS", 3600)


@pytest.fixture
async def stack(database_url: str, redis_url: str) -> AsyncIterator[Stack]:
    """Services whose cached replies outlive a test."""
    async with running(database_url, redis_url, cache={"ttl_negative": 3600}) as stack:
        yield stack


@pytest.fixture
async def fresh(expiry_at_start_only: None, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Fresh:
    """Create the rows; the code of the next booking is fixed."""
    await salon(stack)
    made = {}
    for hours, name in enumerate(("my booking", "other booking", "first hold", "second hold")):
        phone = MINE if name == "my booking" else OTHERS
        request = booking_request(NOON + hours * HOUR, resource_id="anna", customer_phone=phone)
        if "hold" in name:
            request.hold_duration.seconds = 600
        made[name] = await stack.booking.CreateBooking(request)
    rows(stack.database_url, "UPDATE bookings SET hold_expires_at = now() WHERE hold_expires_at > now() RETURNING 1")
    ids, message_id = {}, ""
    for name, named in {
        "mine": {"phone_number": MINE},
        "other": {"phone_number": OTHERS},
        "unnumbered": USER_ONLY,
    }.items():
        message = await stack.messaging.RecordMessage(message_request(f"wamid.{name}", **named))
        ids[name], message_id = message.conversation_id, message.message_id
    monkeypatch.setattr("services.booking.write_rpcs.new_code", lambda: NEW_CODE)
    codes = {"new booking": NEW_CODE, **{name: one.booking_code for name, one in made.items()}}
    return Fresh(stack, codes, ids, made["my booking"].create_time.seconds, message_id)


async def each(fresh: Fresh, writes: Iterable[tuple[Any, Any, set[str]]]) -> None:
    """Make each write, and check which reads it invalidates."""
    for rpc, request, expected in writes:
        name = type(request).__name__
        assert (name, await fresh.missed(partial(rpc, request))) == (name, expected)


async def test_changes_of_bookings_invalidate_exactly_their_reads(fresh: Fresh) -> None:
    service = fresh.stack.booking
    mine: Fields = {"salon_id": SALON, "booking_code": fresh.codes["my booking"].lower()}
    take = booking_request(NOON + 2 * HOUR, resource_id="anna")
    to_second_hold = booking.RescheduleBookingRequest(
        **mine, start_time=Timestamp(seconds=NOON + 3 * HOUR), ignore_rules=True
    )
    confirm = booking.UpdateBookingStatusRequest(**mine, status=booking.BOOKING_STATUS_CONFIRMED)
    anna = booking.UpsertResourceRequest(salon_id=SALON, resource_id="anna", name="Anna", active=True)
    elsewhere = booking.Salon(salon_id=SALON, phone_number_id=f"10{SALON}", name="New", time_zone="Asia/Tokyo")
    erase = booking.EraseCustomerRequest(salon_id=SALON, phone_number=MINE)
    cut: Fields = {"salon_id": SALON, "service_id": "cut"}
    upsert = booking.UpsertServiceRequest(**cut, name="Cut", duration=Duration(seconds=1800), active=True)
    off: Fields = {"start_time": Timestamp(seconds=NOON), "end_time": Timestamp(seconds=NOON + HOUR)}
    notes = booking.UpdateBookingRequest(booking=booking.Booking(**mine, notes="x"))
    unused: Fields = {"salon_id": SALON, "resource_id": "ben"}
    services, of_bookings = {"service", "services"}, {"bookings", "resources", "time off"}
    lists = of_bookings | {"stats"}
    await each(
        fresh,
        [
            (service.CreateBooking, take, lists | {"new booking"} | fresh.of("first hold")),
            (service.RescheduleBooking, to_second_hold, lists | fresh.of("my booking", "second hold")),
            (service.UpdateBookingStatus, confirm, lists | fresh.of("my booking")),
            (service.UpdateBooking, notes, lists | fresh.of("my booking")),
            (service.UpsertResource, anna, of_bookings),
            (service.DeleteResource, booking.DeleteResourceRequest(**unused), of_bookings),
            (service.CreateTimeOff, booking.CreateTimeOffRequest(salon_id=SALON, **off), of_bookings),
            (service.UpsertService, upsert, services),
            (service.DeleteService, booking.DeleteServiceRequest(**cut), services),
            (
                service.UpsertSalon,
                booking.UpsertSalonRequest(salon=elsewhere),
                {"salon", "salon by phone_number_id", "stats"},
            ),
            (service.EraseCustomer, erase, lists | fresh.of(*fresh.codes)),
        ],
    )


async def test_changes_of_conversations_invalidate_exactly_their_reads(fresh: Fresh) -> None:
    service, mine = fresh.stack.messaging, fresh.ids["mine"]
    named: Fields = {"salon_id": SALON, "phone_number": MINE}
    ai = messaging.RecordAiMessageRequest(
        salon_id=SALON, conversation_id=mine.upper(), model="m", role=messaging.AI_ROLE_ASSISTANT, content="x"
    )
    of_mine = {"conversation of mine, by id", "conversation of mine, by phone"}
    shown = WHOLE_CONVERSATIONS | of_mine | {"customer of mine, by id", "customer of mine, by phone"}
    read = messaging.MarkConversationReadRequest(**named)
    await each(
        fresh,
        [
            (service.RecordAiMessage, ai, WHOLE_CONVERSATIONS | {"AI messages of mine"}),
            (service.AssignConversation, messaging.AssignConversationRequest(**named, assignee="anna"), shown),
            (service.TagConversation, messaging.TagConversationRequest(**named, add_tags=["vip"]), shown),
            (service.MarkConversationRead, read, shown),
            (service.MarkConversationRead, read, set()),
            (service.RecordOptOut, messaging.RecordOptOutRequest(**named), shown),
            (
                service.UpdateConversationStatus,
                messaging.UpdateConversationStatusRequest(**named, status=messaging.CONVERSATION_STATUS_CLOSED),
                shown,
            ),
            (
                service.AssignConversation,
                messaging.AssignConversationRequest(salon_id=SALON, user_id=USER, assignee="ben"),
                WHOLE_CONVERSATIONS | {"conversation of unnumbered, by id", "customer of unnumbered, by id"},
            ),
        ],
    )


async def test_changes_of_messages_invalidate_exactly_their_reads(fresh: Fresh) -> None:
    service = fresh.stack.messaging
    mine, of_salon = fresh.of("of mine, by id", "of mine, by phone"), WHOLE_CONVERSATIONS | WHOLE_MESSAGES
    later = fresh.of("of unnumbered, by id", "of later, by phone")
    again = message_request("wamid.again")
    sent = message_request("wamid.sent", direction="MESSAGE_DIRECTION_OUTBOUND")
    status = messaging.RecordMessageStatusRequest(
        salon_id=SALON, whatsapp_id="wamid.sent", status=messaging.MESSAGE_STATUS_READ
    )
    unknown = messaging.RecordMessageStatusRequest(
        salon_id=SALON, whatsapp_id="wamid.nobody's", status=messaging.MESSAGE_STATUS_READ
    )
    first = message_request("wamid.new", phone_number=NEW)
    number = message_request("wamid.later", phone_number=LATER, user_id=USER)
    inbound = webhook_body(f"10{SALON}", messages=[text("hook", **{"from": MINE[1:]})])
    became = webhook_body(f"10{SALON}", statuses=[whatsapp_status(id="wamid.sent")])
    erase = messaging.EraseCustomerRequest(salon_id=SALON, phone_number=MINE)
    await each(
        fresh,
        [
            (service.RecordMessage, again, of_salon | mine),
            (service.RecordMessage, again, set()),
            (service.RecordMessage, sent, of_salon | mine),
            (service.RecordMessageStatus, status, of_salon | mine),
            (service.RecordMessageStatus, status, set()),
            (service.RecordMessageStatus, unknown, set()),
            (service.RecordMessage, first, of_salon | fresh.of("of new, by phone")),
            (service.RecordMessage, number, of_salon | later),
            (service.IngestWebhook, signed(inbound), of_salon | mine),
            (service.IngestWebhook, signed(inbound), set()),
            (service.IngestWebhook, signed(became), of_salon | mine),
            (service.EraseCustomer, erase, {name for name, read in fresh.reads.items() if read.service == "messaging"}),
        ],
    )


async def test_manual_invalidations_invalidate_exactly_their_reads(fresh: Fresh) -> None:
    service = fresh.stack.ops["messaging"]
    code = f"query:booking:salon:{{{SALON}}}:code:{fresh.codes['my booking']}"
    everything = set(fresh.reads)
    of_salons = {"salon", "salon by phone_number_id", "service", "services"}
    conversations = {name for name in fresh.reads if name.startswith(("conversation", "customer", "AI"))}
    await each(
        fresh,
        [
            (fresh.stack.ops["booking"].InvalidateSalon, ops.InvalidateSalonRequest(salon_id=SALON), everything),
            (
                service.InvalidateSalon,
                ops.InvalidateSalonRequest(salon_id=SALON),
                everything - {"salon by phone_number_id"},
            ),
            (service.InvalidateNamespace, ops.InvalidateNamespaceRequest(namespace="conversation"), conversations),
            (service.InvalidateNamespace, ops.InvalidateNamespaceRequest(namespace="salon"), of_salons),
            (
                service.InvalidatePattern,
                ops.InvalidatePatternRequest(pattern=code),
                {"bookings", "resources", "time off"} | fresh.of("my booking"),
            ),
        ],
    )
