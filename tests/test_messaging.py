"""Messages and their conversations: created together, once, in their salon."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import (
    PHONE,
    SALON,
    Fields,
    Stack,
    executed,
    failure,
    fresh,
    message_request,
    quiet,
    rows,
    running,
    salon,
    warm,
)

CONVERSATION = pb.GetConversationRequest(salon_id=SALON, phone_number=PHONE)


async def close(stack: Stack, **fields: Any) -> pb.Conversation:
    """Close the conversation that `fields` name."""
    closed = {"salon_id": SALON, "status": pb.CONVERSATION_STATUS_CLOSED, **fields}
    return await stack.messaging.UpdateConversationStatus(pb.UpdateConversationStatusRequest(**closed))


def counts(stack: Stack) -> Any:
    """Return the number of conversations and of messages."""
    query = "SELECT (SELECT count(*) FROM conversations), (SELECT count(*) FROM messages)"
    return rows(stack.database_url, query)[0]


async def test_a_message_is_recorded_with_its_conversation(stack: Stack) -> None:
    await salon(stack)
    sent: Fields = {
        "cost_micros": 7_500,
        "currency_code": "EUR",
        "send_time": Timestamp(seconds=1_700_000_000, nanos=1_000),
    }
    request = message_request(content="'; DROP TABLE messages; --\n💇", type="MESSAGE_TYPE_IMAGE", **sent)
    message = await stack.messaging.RecordMessage(request)
    for field in ("salon_id", "phone_number", "direction", "whatsapp_id", "type", "content", "cost_micros"):
        assert getattr(message, field) == getattr(request, field)
    assert (message.currency_code, message.create_time) == ("EUR", request.send_time)
    assert message.status == pb.MESSAGE_STATUS_RECEIVED
    conversation = await stack.messaging.GetConversation(CONVERSATION)
    assert conversation.conversation_id == message.conversation_id
    assert conversation.start_time == conversation.last_message_time == message.create_time
    assert (conversation.status, list(conversation.messages)) == (pb.CONVERSATION_STATUS_ACTIVE, [message])


async def test_by_default_a_message_is_a_pending_text_sent_now(stack: Stack) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(message_request())
    outbound = message_request("", direction="MESSAGE_DIRECTION_OUTBOUND")
    first, second = [await stack.messaging.RecordMessage(outbound) for _ in range(2)]
    assert first.message_id != second.message_id
    assert (first.type, first.status, first.whatsapp_id) == (pb.MESSAGE_TYPE_TEXT, pb.MESSAGE_STATUS_PENDING, "")
    assert second.create_time.ToNanoseconds() > first.create_time.ToNanoseconds()


async def test_a_message_reopens_its_conversation(stack: Stack) -> None:
    await salon(stack)
    first = await stack.messaging.RecordMessage(message_request(send_time=Timestamp(seconds=2000)))
    assert (await close(stack, phone_number=PHONE)).status == pb.CONVERSATION_STATUS_CLOSED
    await stack.messaging.RecordMessage(message_request("wamid.2", send_time=Timestamp(seconds=3000)))
    late = await stack.messaging.RecordMessage(message_request("wamid.0", send_time=Timestamp(seconds=1000)))
    conversation = await stack.messaging.GetConversation(CONVERSATION)
    assert first.conversation_id == late.conversation_id == conversation.conversation_id
    assert conversation.status == pb.CONVERSATION_STATUS_ACTIVE
    assert (conversation.start_time.seconds, conversation.last_message_time.seconds) == (1000, 3000)
    assert [message.whatsapp_id for message in conversation.messages] == ["wamid.2", "wamid.1", "wamid.0"]


async def test_a_repeated_whatsapp_id_returns_the_first_message_and_writes_nothing(stack: Stack) -> None:
    await salon(stack)
    first = await stack.messaging.RecordMessage(message_request())
    closed = await close(stack, phone_number=PHONE)
    for other in ({}, {"content": "other"}, {"phone_number": "+4915100000000"}, {"direction": 2}):
        assert await stack.messaging.RecordMessage(message_request(**other)) == first
    assert counts(stack) == (1, 1)
    assert (await stack.messaging.GetConversation(CONVERSATION)).etag == closed.etag


async def test_a_whatsapp_id_in_two_salons_names_two_messages(stack: Stack) -> None:
    for name in ("salon-1", "salon-2"):
        await salon(stack, name)
        message = await stack.messaging.RecordMessage(message_request(salon_id=name, content=name))
        wanted = pb.GetConversationRequest(salon_id=name, phone_number=PHONE)
        assert list((await stack.messaging.GetConversation(wanted)).messages) == [message]
    assert counts(stack) == (2, 2)


async def test_a_message_of_an_unknown_salon_writes_nothing(stack: Stack) -> None:
    for whatsapp_id in ("wamid.1", ""):
        template: Fields = {"direction": "MESSAGE_DIRECTION_OUTBOUND", "type": "MESSAGE_TYPE_TEMPLATE"}
        request = message_request(whatsapp_id, request_id=str(uuid4()), **template)
        error = await failure(stack.messaging.RecordMessage(request))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")
    assert counts(stack) == (0, 0)
    await salon(stack)
    await stack.messaging.RecordMessage(request)


async def test_only_a_first_contact_needs_the_booking_service(stack: Stack, database_url: str, redis_url: str) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(message_request())
    async with running(database_url, redis_url) as restarted:
        await restarted.servers["booking"].drain()
        await restarted.messaging.RecordMessage(message_request("wamid.2"))
        error = await failure(restarted.messaging.RecordMessage(message_request("3", phone_number="+4915100000000")))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "BOOKING_UNAVAILABLE")


async def test_two_concurrent_messages_of_a_new_customer_make_one_conversation(stack: Stack) -> None:
    await salon(stack)
    for number in range(20):
        phone = f"+49151000000{number:02}"
        requests = [message_request(f"wamid.{number}.{one}", phone_number=phone) for one in range(2)]
        recorded = await asyncio.gather(*map(stack.messaging.RecordMessage, requests))
        assert recorded[0].conversation_id == recorded[1].conversation_id
    assert counts(stack) == (20, 40)


async def test_a_message_recorded_concurrently_is_stored_once(stack: Stack) -> None:
    await salon(stack)
    recorded = await asyncio.gather(*(stack.messaging.RecordMessage(message_request()) for _ in range(16)))
    assert len({message.message_id for message in recorded}) == 1
    assert counts(stack) == (1, 1)


async def test_a_conversation_has_its_10_newest_messages_by_default(stack: Stack) -> None:
    await salon(stack)
    messages = [
        await stack.messaging.RecordMessage(message_request(f"wamid.{second}", send_time=Timestamp(seconds=second)))
        for second in range(1, 13)
    ]
    for limit, expected in ((0, 10), (1, 1), (11, 11), (12, 12), (2**31 - 1, 12)):
        wanted = pb.GetConversationRequest(salon_id=SALON, phone_number=PHONE, message_limit=limit)
        assert list((await stack.messaging.GetConversation(wanted)).messages) == messages[::-1][:expected]


async def test_a_conversation_and_its_messages_are_one_statement(database_url: str, redis_url: str) -> None:
    async with quiet(database_url, redis_url) as stack:
        await salon(stack)
        for number in range(3):
            await stack.messaging.RecordMessage(message_request(f"wamid.{number}"))
        await warm(stack.messaging.GetConversation, CONVERSATION)  # the tag is known from now on
        before = await executed(stack, "messaging")
        wanted = pb.GetConversationRequest(salon_id=SALON, phone_number=PHONE, message_limit=3)
        assert len((await fresh(stack.messaging.GetConversation, wanted)).messages) == 3
        assert await executed(stack, "messaging") == before + 1
        await warm(stack.messaging.GetConversation, wanted)
        assert await executed(stack, "messaging") == before + 1


async def test_a_conversation_is_found_by_its_id_or_its_phone_number(stack: Stack) -> None:
    await salon(stack)
    message = await stack.messaging.RecordMessage(message_request())
    by_id, by_phone = {"conversation_id": message.conversation_id}, {"phone_number": PHONE}
    for names in (by_id, by_phone, by_id | by_phone, {"conversation_id": message.conversation_id.upper()}):
        assert (await close(stack, **names)).conversation_id == message.conversation_id
    missing: list[dict[str, Any]] = [
        {"conversation_id": str(uuid4())},
        {"phone_number": "+4915100000000"},
        by_id | {"phone_number": "+4915100000000"},
        by_id | {"salon_id": "salon-2"},
    ]
    for names in missing:
        error = await failure(close(stack, **names))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
    error = await failure(close(stack))
    assert error.fields == ["conversation_id"]


async def test_a_conversation_can_change_to_any_status_with_the_current_version(stack: Stack) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(message_request())
    etag = "1"
    for status in (2, 3, 1, 3, 2, 1, 1):
        conversation = await close(stack, phone_number=PHONE, status=status, etag=etag)
        assert conversation.status == status
        assert conversation.etag != etag
        error = await failure(close(stack, phone_number=PHONE, etag=etag))
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        etag = conversation.etag


async def test_the_absence_of_a_conversation_is_cached_until_it_is_created(database_url: str, redis_url: str) -> None:
    async with quiet(database_url, redis_url) as stack:
        await salon(stack)
        assert (await failure(stack.messaging.GetConversation(CONVERSATION))).reason == "CONVERSATION_NOT_FOUND"
        before = await executed(stack, "messaging")
        assert (await failure(stack.messaging.GetConversation(CONVERSATION))).reason == "CONVERSATION_NOT_FOUND"
        assert await executed(stack, "messaging") == before
        message = await stack.messaging.RecordMessage(message_request())
        assert list((await fresh(stack.messaging.GetConversation, CONVERSATION)).messages) == [message]


async def test_a_message_has_the_language_of_the_newest_message_of_the_salon(stack: Stack) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(message_request("wamid.1", send_time=Timestamp(seconds=1)))
    await stack.messaging.RecordMessage(message_request("wamid.2", send_time=Timestamp(seconds=2)))
    rows(
        stack.database_url,
        "UPDATE messages SET language = CASE whatsapp_id WHEN 'wamid.2' THEN 'pt' ELSE 'de' END RETURNING 1",
    )
    await stack.messaging.RecordMessage(message_request("wamid.3", phone_number="+4915100000000"))
    languages = rows(stack.database_url, "SELECT language FROM messages ORDER BY whatsapp_id")
    assert languages == [("de",), ("pt",), ("pt",)]
