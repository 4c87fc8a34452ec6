"""Reads of one kind that miss in one tick share a statement, and get the same answers as alone."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import product
from time import time
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import redis
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import SecretStr

from libs.cache import MAX_AGE
from libs.cache.keys import VERSION_SUFFIX
from libs.server import RpcError
from parlor.booking.v1 import booking_pb2 as booking
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.stats.v1 import stats_pb2 as stats
from services.booking.service import build as build_booking
from services.messaging.service import build as build_messaging
from services.messaging.settings import MessagingSettings
from services.stats.service import build as build_stats
from tests.stack import PHONE, SECRET, Fields, Stack, booking_request, message_request, quiet, salon

FULL, OTHER, EMPTY, UNKNOWN = SALONS = ("salon-full", "salon-other", "salon-empty", "salon-unknown")
OTHER_PHONE, USER = "+4915100000000", "DE.1"
NOON, HOUR = 1_800_000_000, 3600
SMALL: Fields = {"page_size": 20}  # so that all lists of a test fit in one statement


def periods(*bounds: tuple[int, int]) -> list[Fields]:
    return [{"start_time": Timestamp(seconds=start), "end_time": Timestamp(seconds=end)} for start, end in bounds]


PERIODS = periods((NOON, NOON + HOUR), (NOON - 86_400, NOON + 3 * HOUR), (0, 1000))


class Kind(NamedTuple):
    """Requests that may share a statement, and the handler that answers them."""

    handler: Callable[[Any, None], Awaitable[Any]]
    reply: type[Message]
    requests: Sequence[Message]


class Data(NamedTuple):
    """The data of the salons: codes of bookings, IDs of conversations."""

    codes: list[tuple[str, str]]
    conversations: list[tuple[str, str]]


async def filled(stack: Stack) -> Data:
    """Fill two of three salons, one of them with little data."""
    codes, conversations = [(EMPTY, "NONE00"), (UNKNOWN, "NONE00")], [(EMPTY, str(uuid4())), (UNKNOWN, str(uuid4()))]
    for salon_id, count in ((FULL, 5), (OTHER, 2), (EMPTY, 0)):
        await salon(stack, salon_id)
        for number in range(count):
            resource: Fields = {
                "salon_id": salon_id,
                "resource_id": f"chair-{number}",
                "name": "Chair",
                "active": number > 0,
            }
            await stack.booking.UpsertResource(booking.UpsertResourceRequest(**resource))
            phone = PHONE if number % 2 else OTHER_PHONE
            fields: Fields = {"customer_phone": phone, "status": number % 2 + 1, "resource_id": f"chair-{number}"}
            made = await stack.booking.CreateBooking(booking_request(NOON + HOUR * number, salon_id=salon_id, **fields))
            codes.append((salon_id, made.booking_code))
            sent: Fields = {"send_time": Timestamp(seconds=1000 + number), "phone_number": phone, "cost_micros": number}
            if number % 2:
                sent |= {"direction": "MESSAGE_DIRECTION_OUTBOUND", "type": "MESSAGE_TYPE_TEMPLATE"}
            sent |= {"currency_code": "EUR"} if number else {}
            message = await stack.messaging.RecordMessage(message_request(f"wamid.{number}", salon_id=salon_id, **sent))
            conversations.append((salon_id, message.conversation_id))
            named: Fields = {"salon_id": salon_id, "conversation_id": message.conversation_id}
            ai_message: Fields = {"model": f"m-{number % 2}", "role": messaging.AI_ROLE_ASSISTANT, "latency_ms": number}
            await stack.messaging.RecordAiMessage(messaging.RecordAiMessageRequest(**named, **ai_message))
            if number:
                assigned = messaging.AssignConversationRequest(**named, assignee=f"user-{number}")
                await stack.messaging.AssignConversation(assigned)
                tagged = messaging.TagConversationRequest(**named, add_tags=["vip", f"tag-{number}"])
                await stack.messaging.TagConversation(tagged)
        if count:
            unnumbered: Fields = {"phone_number": "", "user_id": USER}
            await stack.messaging.RecordMessage(message_request("wamid.user", salon_id=salon_id, **unnumbered))
    return Data(codes, sorted(set(conversations)))


def booking_kinds(stack: Stack, data: Data) -> Iterator[Kind]:
    server = stack.servers["booking"]
    service: Any = build_booking(server.cache, server.database).servicer
    bookings: list[list[Fields]] = [
        [{}, {"page_size": 1}, {"page_size": 3}],
        [{"status": status} for status in (1, 2, 3)],
        [{"customer_phone": phone} for phone in (PHONE, OTHER_PHONE)],
        PERIODS,
        [{"start_time": period["start_time"], "status": 2} for period in PERIODS],
        [{"end_time": period["end_time"]} for period in PERIODS],
    ]
    for filters in bookings:
        requests = [
            booking.ListBookingsRequest(**SMALL | {"salon_id": of} | each) for of, each in product(SALONS, filters)
        ]
        yield Kind(service.ListBookings, booking.ListBookingsResponse, requests)
    for active in (False, True):
        resources = [
            booking.ListResourcesRequest(salon_id=of, active_only=active, page_size=size)
            for of, size in product(SALONS, (20, 1, 2))
        ]
        yield Kind(service.ListResources, booking.ListResourcesResponse, resources)
    events = [booking.ListBookingEventsRequest(salon_id=of, booking_code=code, page_size=20) for of, code in data.codes]
    yield Kind(service.ListBookingEvents, booking.ListBookingEventsResponse, events)


def messaging_kinds(stack: Stack, data: Data) -> Iterator[Kind]:
    server = stack.servers["messaging"]
    service: Any = build_messaging(
        server.cache, server.database, MessagingSettings(whatsapp_app_secret=SecretStr(SECRET))
    ).servicer
    phones = [{"salon_id": of, "phone_number": phone} for of, phone in product(SALONS, (PHONE, OTHER_PHONE))]
    ids = [{"salon_id": of, "conversation_id": found} for of, found in data.conversations]
    users = [{"salon_id": of, "user_id": user} for of, user in product(SALONS, (USER, "DE.2"))]
    for names in (phones, ids, users):
        named: list[Fields] = [{**each, "message_limit": limit} for each, limit in product(names, (1, 2, 0))]
        conversations = [messaging.GetConversationRequest(**each) for each in named]
        yield Kind(service.GetConversation, messaging.Conversation, conversations)
    whole = [{"salon_id": of} for of in SALONS]
    for names, way in product((whole, phones, ids), ({}, {"direction": 1}, {"direction": 2})):
        sized: list[Fields] = [{**each, **way, "page_size": size} for each, size in product(names, (1, 20))]
        messages = [messaging.ListMessagesRequest(**each) for each in sized]
        yield Kind(service.ListMessages, messaging.ListMessagesResponse, messages)
    chosen: list[list[Fields]] = [
        [{}, {"page_size": 1}],
        [{"status": status} for status in (1, 2)],
        [{"tag": tag} for tag in ("vip", "tag-1", "none")],
        [{"unread_only": True}],
        [{"assignee": f"user-{number}"} for number in range(3)],
        [{"tag": "vip", "status": 1, "assignee": "user-4", "unread_only": True}],
    ]
    for filters in chosen:
        lists = [
            messaging.ListConversationsRequest(**SMALL | {"salon_id": of} | each)
            for of, each in product(SALONS, filters)
        ]
        yield Kind(service.ListConversations, messaging.ListConversationsResponse, lists)
    ai_message = [messaging.ListAiMessagesRequest(**SMALL | each) for each in ids]
    yield Kind(service.ListAiMessages, messaging.ListAiMessagesResponse, ai_message)


def stats_kinds(stack: Stack, _: Data) -> Iterator[Kind]:
    server, now = stack.servers["stats"], int(time())
    some = periods((1000, 1002), (NOON, NOON + HOUR), (0, 86_400 * 20), (now - 86_400, now + 86_400))
    service: Any = build_stats(server.cache, server.database).servicer
    for name in ("GetSalonStats", "GetMessageDirectionStats", "GetAiAnalytics"):
        kind, reply = getattr(stats, f"{name}Request"), getattr(stats, name.removeprefix("Get"))
        yield Kind(
            getattr(service, name), reply, [kind(salon_id=of, **of_all) for of, of_all in product(SALONS, PERIODS)]
        )
    for name in ("ListBookingStats", "ListConversationStats"):
        kind, reply = getattr(stats, f"{name}Request"), getattr(stats, f"{name}Response")
        buckets = [kind(salon_id=of, bucket=bucket, **days) for of, bucket, days in product(SALONS, (1, 2, 3), some)]
        yield Kind(getattr(service, name), reply, buckets)


async def outcome(kind: Kind, request: Message) -> tuple[str, Message | None]:
    """Return the reply or the error of a request."""
    try:
        reply = await kind.handler(request, None)
    except RpcError as error:
        return error.reason, None
    answer = kind.reply.FromString(reply.body)
    if "as_of" in answer.DESCRIPTOR.fields_by_name:
        answer.ClearField("as_of")
    return "OK", answer


async def alone(kind: Kind, request: Message) -> tuple[str, Message | None]:
    """Return the outcome of a request that bypasses the cache."""
    MAX_AGE.set(0)
    return await asyncio.create_task(outcome(kind, request))


async def together(kind: Kind) -> list[tuple[str, Message | None]]:
    """Return the outcomes of all requests of a kind, sent in one tick."""
    return await asyncio.gather(*(outcome(kind, request) for request in kind.requests))


def forget(redis_url: str) -> None:
    """Remove all entries from the cache, but no tag version records."""
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter("query:*"):
            if not key.endswith((VERSION_SUFFIX.encode(), b"run-id")):
                client.delete(key)


@pytest.mark.parametrize("name", ["booking", "messaging", "stats"])
async def test_reads_of_one_kind_share_a_statement_and_get_their_own_replies(
    name: str, database_url: str, redis_url: str
) -> None:
    kinds_of = {"booking": booking_kinds, "messaging": messaging_kinds, "stats": stats_kinds}
    async with quiet(database_url, redis_url) as stack:
        data = await filled(stack)
        server = stack.servers[name]
        reasons: set[str] = set()
        for kind in kinds_of[name](stack, data):
            expected = [await asyncio.create_task(alone(kind, request)) for request in kind.requests]
            assert await together(kind) == expected  # the tags are known from now on
            await server.cache.settle()
            assert await together(kind) == expected
            forget(redis_url)
            before = server.database.queries.executed
            assert await together(kind) == expected
            assert server.database.queries.executed <= before + 2  # a load that can't be stored takes a barrier
            await server.cache.settle()
            reasons |= {reason for reason, _ in expected}
            assert any(answer and answer.ByteSize() for _, answer in expected)
        assert len(reasons) > 1
