"""Lists of conversations, messages and AI messages: filters, order, pages, and the invalidation by writes."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import PHONE, SALON, Fields, Stack, cached, failure, message_request, salon, walk, warm

ACTIVE, CLOSED, ARCHIVED = pb.ConversationStatus.values()[1:]
INBOUND, OUTBOUND = pb.MESSAGE_DIRECTION_INBOUND, pb.MESSAGE_DIRECTION_OUTBOUND


def phone(number: int) -> str:
    return f"+4915100000{number:03}"


def ai_request(conversation_id: str, **fields: Any) -> pb.RecordAiMessageRequest:
    """Return a request to record an answer of an AI."""
    values = {"salon_id": SALON, "conversation_id": conversation_id, "model": "m-1", "role": pb.AI_ROLE_ASSISTANT}
    return pb.RecordAiMessageRequest(**{**values, **fields})


def newest(items: list[Any], time: str, identifier: str) -> list[Any]:
    """Return items in the order of a list."""
    return sorted(
        items, key=lambda item: (getattr(item, time).ToNanoseconds(), getattr(item, identifier)), reverse=True
    )


async def filled(stack: Stack) -> list[pb.Message]:
    """Record messages of three customers, some at equal times, and one of another salon; return the salon's."""
    await salon(stack)
    await salon(stack, "salon-2")
    await stack.messaging.RecordMessage(message_request(salon_id="salon-2", phone_number=phone(0)))
    recorded = []
    for number in range(11):
        way: Fields = (
            {"direction": OUTBOUND, "type": pb.MESSAGE_TYPE_TEMPLATE} if number % 2 else {"direction": INBOUND}
        )
        way["phone_number"] = phone(number % 3)
        request = message_request(f"wamid.{number}", send_time=Timestamp(seconds=1000 + number // 4), **way)
        recorded.append(await stack.messaging.RecordMessage(request))
    return newest(recorded, "create_time", "message_id")


async def test_messages_are_listed_by_salon_conversation_phone_and_direction(stack: Stack) -> None:
    messages = await filled(stack)
    conversation = messages[0].conversation_id
    filters: list[tuple[dict[str, Any], Callable[[pb.Message], bool]]] = [
        ({}, lambda _: True),
        ({"conversation_id": conversation}, lambda message: message.conversation_id == conversation),
        ({"conversation_id": conversation.upper()}, lambda message: message.conversation_id == conversation),
        ({"phone_number": phone(1)}, lambda message: message.phone_number == phone(1)),
        ({"direction": OUTBOUND}, lambda message: message.direction == OUTBOUND),
        (
            {"conversation_id": conversation, "phone_number": messages[0].phone_number, "direction": INBOUND},
            lambda message: message.conversation_id == conversation and message.direction == INBOUND,
        ),
        ({"conversation_id": str(uuid4())}, lambda _: False),
    ]
    for fields, wanted in filters:
        request = pb.ListMessagesRequest(salon_id=SALON, **fields)
        expected = [message for message in messages if wanted(message)]
        for page_size in (0, 1, 2, 3):
            assert await walk(stack.messaging.ListMessages, request, page_size or 200) == expected


async def test_conversations_are_listed_by_status_newest_activity_first(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await stack.messaging.RecordMessage(message_request(salon_id="salon-2"))
    conversations = []
    for number in range(9):
        sent = {"phone_number": phone(number), "send_time": Timestamp(seconds=1000 + number // 3)}
        await stack.messaging.RecordMessage(message_request(f"wamid.{number}", **sent))
        moved: Fields = {
            "salon_id": SALON,
            "phone_number": phone(number),
            "status": (ACTIVE, CLOSED, ARCHIVED)[number % 3],
        }
        moved_to = await stack.messaging.UpdateConversationStatus(pb.UpdateConversationStatusRequest(**moved))
        conversations.append(moved_to)
    conversations = newest(conversations, "last_message_time", "conversation_id")
    for status in pb.ConversationStatus.values():
        expected = [
            conversation for conversation in conversations if conversation.status == (status or conversation.status)
        ]
        request = pb.ListConversationsRequest(salon_id=SALON, status=status)
        for page_size in (1, 2, 3, 200):
            listed = await walk(stack.messaging.ListConversations, request, page_size)
            for row in listed:
                row.ClearField("last_message")
            assert listed == expected


async def test_ai_messages_are_recorded_and_listed_newest_first(stack: Stack) -> None:
    conversation = (await filled(stack))[0].conversation_id
    fields = {"content": "';\n💇", "prompt_tokens": 2**31 - 1, "completion_tokens": 5, "latency_ms": 1200}
    request = ai_request(conversation, cost_micros=10**15, currency_code="USD", booking_code="ABC234", **fields)
    recorded = [await stack.messaging.RecordAiMessage(request) for _ in range(4)]
    for field in request.DESCRIPTOR.fields:
        if field.name != "request_id":
            assert getattr(recorded[0], field.name) == getattr(request, field.name)
    recorded = newest(recorded, "create_time", "ai_message_id")
    wanted = pb.ListAiMessagesRequest(salon_id=SALON, conversation_id=conversation.upper())
    for page_size in (1, 2, 3, 200):
        assert await walk(stack.messaging.ListAiMessages, wanted, page_size) == recorded
    other = pb.ListAiMessagesRequest(salon_id="salon-2", conversation_id=conversation)
    assert await walk(stack.messaging.ListAiMessages, other, 200) == []


async def test_an_ai_message_needs_a_conversation_of_its_salon(stack: Stack) -> None:
    conversation = (await filled(stack))[0].conversation_id
    for request in (ai_request(str(uuid4())), ai_request(conversation, salon_id="salon-2")):
        error = await failure(stack.messaging.RecordAiMessage(request))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")


async def test_lists_of_an_unknown_salon_are_empty_pages(stack: Stack) -> None:
    unknown: Fields = {"salon_id": "nowhere"}
    assert await stack.messaging.ListMessages(pb.ListMessagesRequest(**unknown)) == pb.ListMessagesResponse()
    conversations = await stack.messaging.ListConversations(pb.ListConversationsRequest(**unknown))
    assert conversations == pb.ListConversationsResponse()
    recorded = await stack.messaging.ListAiMessages(pb.ListAiMessagesRequest(**unknown, conversation_id=str(uuid4())))
    assert recorded == pb.ListAiMessagesResponse()


async def test_a_page_token_is_valid_only_for_its_list_and_filters(stack: Stack) -> None:
    conversation = (await filled(stack))[0].conversation_id
    for _ in range(2):
        await stack.messaging.RecordAiMessage(ai_request(conversation))
    mine: Fields = {"salon_id": SALON, "page_size": 1}
    of_messages = (await stack.messaging.ListMessages(pb.ListMessagesRequest(**mine))).next_page_token
    listed = await stack.messaging.ListConversations(pb.ListConversationsRequest(**mine))
    wrong: list[Awaitable[Any]] = [
        stack.messaging.ListMessages(pb.ListMessagesRequest(page_token=listed.next_page_token, **mine)),
        stack.messaging.ListConversations(pb.ListConversationsRequest(page_token=of_messages, **mine)),
        stack.messaging.ListMessages(pb.ListMessagesRequest(page_token=of_messages, direction=INBOUND, **mine)),
        stack.messaging.ListMessages(pb.ListMessagesRequest(page_token=of_messages, salon_id="salon-2")),
        stack.messaging.ListAiMessages(
            pb.ListAiMessagesRequest(page_token=of_messages, conversation_id=conversation, **mine)
        ),
    ]
    for call in wrong:
        assert (await failure(call)).fields == ["page_token"]


async def test_each_write_is_in_the_next_reply(stack: Stack) -> None:
    await salon(stack)
    first = await stack.messaging.RecordMessage(message_request(direction=OUTBOUND, type=pb.MESSAGE_TYPE_TEMPLATE))
    named: Fields = {"salon_id": SALON, "conversation_id": first.conversation_id}
    by_phone = pb.GetConversationRequest(salon_id=SALON, phone_number=PHONE)
    reads: dict[str, tuple[Any, Any]] = {
        "messages": (stack.messaging.ListMessages, pb.ListMessagesRequest(salon_id=SALON)),
        "conversation": (stack.messaging.GetConversation, by_phone),
        "conversations": (stack.messaging.ListConversations, pb.ListConversationsRequest(salon_id=SALON)),
        "AI messages": (stack.messaging.ListAiMessages, pb.ListAiMessagesRequest(**named)),
    }
    read: Fields = {"salon_id": SALON, "whatsapp_id": "wamid.1", "status": pb.MESSAGE_STATUS_READ}
    closed = pb.UpdateConversationStatusRequest(**named, status=CLOSED)
    shown = {"messages", "conversation", "conversations"}
    writes: list[tuple[Any, Any, set[str]]] = [
        (stack.messaging.RecordMessage, message_request("wamid.2"), shown),
        (stack.messaging.RecordMessageStatus, pb.RecordMessageStatusRequest(**read), shown),
        (stack.messaging.UpdateConversationStatus, closed, {"conversation", "conversations"}),
        (stack.messaging.RecordAiMessage, ai_request(first.conversation_id), {"conversations", "AI messages"}),
    ]
    for rpc, request, touched in writes:
        for reader, wanted in reads.values():
            await warm(reader, wanted)
        await rpc(request)
        found = {name: await cached(reader(wanted)) for name, (reader, wanted) in reads.items()}
        assert {name for name, (_, source) in found.items() if source != "hit"} == touched
    reply, conversation, listed, recorded = (reply for reply, _ in found.values())
    assert [message.status for message in reply.messages] == [pb.MESSAGE_STATUS_RECEIVED, pb.MESSAGE_STATUS_READ]
    assert list(conversation.messages) == list(reply.messages)
    assert (listed.conversations[0].status, len(recorded.ai_messages)) == (CLOSED, 1)


async def pages_back(stack: Stack, request: pb.ListMessagesRequest) -> list[pb.Message]:
    """Return the messages of a page and of all pages before it."""
    found: list[pb.Message] = []
    asked = pb.ListMessagesRequest()
    asked.CopyFrom(request)
    while True:
        reply = await stack.messaging.ListMessages(asked)
        found = [*reply.messages, *found]
        if not reply.previous_page_token:
            return found
        asked.page_token = reply.previous_page_token


@pytest.mark.parametrize("page_size", [1, 2, 3, 50])
async def test_pages_lead_both_ways_around_any_message(stack: Stack, page_size: int) -> None:
    every = await filled(stack)
    mine = [message for message in every if message.phone_number == phone(1)]
    of_one: Fields = {"conversation_id": mine[0].conversation_id}
    for named, messages in (({}, every), ({"phone_number": phone(1)}, mine), (of_one, mine)):
        for message in messages:
            fields: Fields = {**named, "around_message_id": message.message_id.upper(), "page_size": page_size}
            request = pb.ListMessagesRequest(salon_id=SALON, **fields)
            first = await stack.messaging.ListMessages(request)
            assert message in first.messages
            back = await pages_back(stack, request)
            assert back == messages[: len(back)]
            assert back[-len(first.messages) :] == list(first.messages)
            rest: list[pb.Message] = []
            if first.next_page_token:
                request.page_token = first.next_page_token
                rest = await walk(stack.messaging.ListMessages, request, page_size)
            assert [*back, *rest] == messages


async def test_a_next_page_leads_back_to_the_page_before(stack: Stack) -> None:
    every = await filled(stack)
    request = pb.ListMessagesRequest(salon_id=SALON, page_size=4)
    first = await stack.messaging.ListMessages(request)
    assert first.previous_page_token == ""
    request.page_token = first.next_page_token
    second = await stack.messaging.ListMessages(request)
    request.page_token = second.previous_page_token
    back = await stack.messaging.ListMessages(request)
    assert (back.messages, back.previous_page_token) == (first.messages, "")
    request.page_token = back.next_page_token
    assert (await stack.messaging.ListMessages(request)).messages == second.messages
    new = await stack.messaging.RecordMessage(message_request("wamid.new", phone_number=phone(1)))
    request.page_token = second.previous_page_token
    request.page_size = 200
    assert await pages_back(stack, request) == [new, *every[:4]]


async def test_messages_after_and_before_a_time_are_listed(stack: Stack) -> None:
    every = await filled(stack)
    for fields in ({}, {"phone_number": phone(1)}, {"direction": OUTBOUND}):
        for after, before in ((1000, None), (None, 1001), (1000, 1002), (1001, 1002), (None, 1000)):
            times = {"after_time": after, "before_time": before}
            given: Fields = {name: Timestamp(seconds=at) for name, at in times.items() if at}
            expected = [
                message
                for message in every
                if (after is None or message.create_time.seconds > after)
                if (before is None or message.create_time.seconds < before)
                if message.phone_number == fields.get("phone_number", message.phone_number)
                if message.direction == fields.get("direction", message.direction)
            ]
            request = pb.ListMessagesRequest(salon_id=SALON, **fields, **given)
            assert await walk(stack.messaging.ListMessages, request, 2) == expected


async def test_a_page_around_an_unknown_message_is_not_found(stack: Stack) -> None:
    [message, *_] = await filled(stack)
    other: list[Fields] = [{"around_message_id": str(uuid4())}, {"salon_id": "salon-2"}]
    for fields in other:
        request = pb.ListMessagesRequest(**{"salon_id": SALON, "around_message_id": message.message_id, **fields})
        error = await failure(stack.messaging.ListMessages(request))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MESSAGE_NOT_FOUND")


async def test_a_token_of_a_list_is_valid_only_for_its_filters_both_ways(stack: Stack) -> None:
    every = await filled(stack)
    around: Fields = {"salon_id": SALON, "around_message_id": every[5].message_id, "page_size": 2}
    first = await stack.messaging.ListMessages(pb.ListMessagesRequest(**around))
    for token in (first.next_page_token, first.previous_page_token):
        for change in ({"around_message_id": ""}, {"after_time": Timestamp(seconds=1)}, {"direction": INBOUND}):
            request = pb.ListMessagesRequest(**{**around, **change}, page_token=token)
            assert (await failure(stack.messaging.ListMessages(request))).fields == ["page_token"]
    other = pb.ListConversationsRequest(salon_id=SALON, page_token=first.previous_page_token)
    assert (await failure(stack.messaging.ListConversations(other))).fields == ["page_token"]


async def test_a_page_around_a_message_of_large_ones_keeps_its_neighbors(stack: Stack) -> None:
    await salon(stack)
    large = "💇" * 60_000
    recorded = [
        await stack.messaging.RecordMessage(
            message_request(f"wamid.{n}", content=large, send_time=Timestamp(seconds=1000 + n))
        )
        for n in range(30)
    ]
    request = pb.ListMessagesRequest(salon_id=SALON, around_message_id=recorded[15].message_id, page_size=28)
    reply = await stack.messaging.ListMessages(request)
    assert reply.previous_page_token
    assert reply.next_page_token
    assert recorded[15].message_id in [message.message_id for message in reply.messages]
    request.page_token = reply.next_page_token
    rest = await walk_unevenly(stack, request)
    request.page_token = reply.previous_page_token
    before = [message.message_id for message in await pages_back(stack, request)]
    assert [*before, *(one.message_id for one in reply.messages), *rest] == [
        one.message_id for one in reversed(recorded)
    ]


async def walk_unevenly(stack: Stack, request: pb.ListMessagesRequest) -> list[str]:
    """Return the ids of a page and those of all pages after it, of any size."""
    found: list[str] = []
    while True:
        reply = await stack.messaging.ListMessages(request)
        found += [message.message_id for message in reply.messages]
        if not reply.next_page_token:
            return found
        request.page_token = reply.next_page_token
