"""RecordMessageSent and RecordMessageFailed: messages that were recorded before they were sent."""

import asyncio
from itertools import permutations
from typing import Any
from uuid import uuid4

import grpc
import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import PHONE, SALON, Stack, deadlocks, failure, fresh, message_request, read_failure, rows, salon, warm

NOBODY = "00000000-0000-0000-0000-000000000000"


async def pending(stack: Stack, **fields: Any) -> pb.Message:
    """Record a message that has not been sent yet."""
    sent = {"direction": pb.MESSAGE_DIRECTION_OUTBOUND, "type": pb.MESSAGE_TYPE_TEMPLATE}
    return await stack.messaging.RecordMessage(message_request("", **sent, **fields))


async def sent(stack: Stack, message_id: str, whatsapp_id: str = "wamid.sent", **fields: Any) -> pb.Message:
    """Record that a message was sent."""
    names = {"salon_id": SALON, "message_id": message_id, "whatsapp_id": whatsapp_id}
    return await stack.messaging.RecordMessageSent(pb.RecordMessageSentRequest(**names, **fields))


async def failed(stack: Stack, message_id: str, **fields: Any) -> pb.Message:
    """Record that a message could not be sent."""
    request = pb.RecordMessageFailedRequest(salon_id=SALON, message_id=message_id, **fields)
    return await stack.messaging.RecordMessageFailed(request)


async def status(stack: Stack, name: str, whatsapp_id: str = "wamid.sent", **fields: Any) -> None:
    """Record a status event."""
    value = pb.MessageStatus.Value(f"MESSAGE_STATUS_{name}")
    request = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id=whatsapp_id, status=value, **fields)
    await stack.messaging.RecordMessageStatus(request)


async def test_a_message_that_was_sent_has_its_whatsapp_id_and_is_sent(stack: Stack) -> None:
    await salon(stack)
    message = await pending(stack)
    assert (message.whatsapp_id, message.status) == ("", pb.MESSAGE_STATUS_PENDING)
    found = await sent(stack, message.message_id)
    assert (found.message_id, found.whatsapp_id) == (message.message_id, "wamid.sent")
    assert found.status == pb.MESSAGE_STATUS_SENT
    await status(stack, "DELIVERED")
    read = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id="wamid.sent"))
    assert (read.message_id, read.status) == (message.message_id, pb.MESSAGE_STATUS_DELIVERED)


@pytest.mark.parametrize("steps", list(permutations(("sent", "DELIVERED", "READ"))))
async def test_statuses_that_came_first_are_applied(stack: Stack, steps: tuple[str, ...]) -> None:
    await salon(stack)
    message = await pending(stack, cost_micros=5, currency_code="EUR")
    for step in steps:
        if step == "sent":
            await sent(stack, message.message_id)
        else:
            await status(stack, step, cost_micros=7, currency_code="USD", pricing_category="utility")
    found = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, message_id=message.message_id))
    assert found.status == pb.MESSAGE_STATUS_READ
    assert (found.cost_micros, found.currency_code, found.pricing_category) == (7, "USD", "utility")
    assert len(found.status_events) == 2


async def test_a_failure_that_came_first_is_applied(stack: Stack) -> None:
    await salon(stack)
    message = await pending(stack)
    await status(stack, "FAILED", error_code=131026, error_title="Message undeliverable")
    found = await sent(stack, message.message_id)
    assert (found.status, found.error_code) == (pb.MESSAGE_STATUS_FAILED, 131026)


async def test_a_failed_send_is_failed_and_may_be_sent_after_all(stack: Stack) -> None:
    await salon(stack)
    message = await pending(stack)
    found = await failed(stack, message.message_id, error_code=131053, error_title="Media", error_details="too big")
    assert (found.status, found.error_code) == (pb.MESSAGE_STATUS_FAILED, 131053)
    assert (found.error_title, found.error_details) == ("Media", "too big")
    before = written(stack)
    again = await failed(stack, message.message_id, error_code=1)
    assert again == found
    assert written(stack) == before
    found = await sent(stack, message.message_id)
    assert (found.status, found.error_code) == (pb.MESSAGE_STATUS_SENT, 0)
    assert (found.error_title, found.error_details) == ("", "")
    await status(stack, "DELIVERED")
    read = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, message_id=message.message_id))
    assert read.status == pb.MESSAGE_STATUS_DELIVERED


def written(stack: Stack) -> Any:
    """Return all rows that a send may write, with their versions."""
    tables = ("messages", "conversations", "message_status_events", "message_changes")
    return [rows(stack.database_url, f"SELECT xmin::text, t::text FROM {table} AS t ORDER BY 2") for table in tables]


async def test_repeats_return_the_message_and_write_nothing(stack: Stack) -> None:
    await salon(stack)
    message = await pending(stack)
    first = await sent(stack, message.message_id)
    before = written(stack)
    assert await sent(stack, message.message_id) == first
    assert written(stack) == before
    await status(stack, "READ")
    before = written(stack)
    assert (await sent(stack, message.message_id)).status == pb.MESSAGE_STATUS_READ
    assert written(stack) == before
    other, name = await pending(stack), str(uuid4())
    once = await sent(stack, other.message_id, "wamid.other", request_id=name)
    await status(stack, "READ", "wamid.other")
    assert await sent(stack, other.message_id, "wamid.other", request_id=name) == once  # the first reply
    third = await pending(stack)
    once = await failed(stack, third.message_id, error_code=1, request_id="send 3")
    await sent(stack, third.message_id, "wamid.3")
    assert await failed(stack, third.message_id, error_code=1, request_id="send 3") == once


async def test_errors_say_what_is_wrong_and_show_no_whatsapp_id(stack: Stack) -> None:
    await salon(stack)
    received = await stack.messaging.RecordMessage(message_request("wamid.CANARY"))
    message, other = await pending(stack), await pending(stack)
    await sent(stack, other.message_id, "wamid.CANARY2")
    for call, reason in (
        (sent(stack, NOBODY), "MESSAGE_NOT_FOUND"),
        (failed(stack, NOBODY), "MESSAGE_NOT_FOUND"),
        (sent(stack, received.message_id, "wamid.CANARY"), "NOT_OUTBOUND"),
        (failed(stack, received.message_id), "NOT_OUTBOUND"),
        (sent(stack, message.message_id, "wamid.CANARY"), "WHATSAPP_ID_TAKEN"),
        (sent(stack, message.message_id, "wamid.CANARY2"), "WHATSAPP_ID_TAKEN"),
        (sent(stack, other.message_id, "wamid.CANARY3"), "ALREADY_SENT"),
        (failed(stack, other.message_id), "ALREADY_SENT"),
    ):
        found = await failure(call)
        assert found.reason == reason
        assert "CANARY" not in f"{found.message} {found.metadata} {found.details} {found.trailing}"
    found = await failure(sent(stack, message.message_id, "wamid.CANARY2"))
    assert found.code.name == "ALREADY_EXISTS"
    read = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, message_id=message.message_id))
    assert (read.status, read.whatsapp_id) == (pb.MESSAGE_STATUS_PENDING, "")
    names = {"message_id": message.message_id, "whatsapp_id": "wamid.x"}
    foreign = pb.RecordMessageSentRequest(salon_id="salon-2", **names)
    assert (await failure(stack.messaging.RecordMessageSent(foreign))).reason == "MESSAGE_NOT_FOUND"


async def test_of_a_send_and_a_record_of_one_whatsapp_id_one_wins(stack: Stack) -> None:
    """The other one is refused, or returns the message of the first: never two messages, never an INTERNAL."""
    await salon(stack)
    await pending(stack)
    for number in range(20):
        message = await pending(stack)
        name = f"wamid.{number}"
        template = {"direction": pb.MESSAGE_DIRECTION_OUTBOUND, "type": pb.MESSAGE_TYPE_TEMPLATE}
        record = message_request(name, **template)
        outcomes = await asyncio.gather(
            sent(stack, message.message_id, name),
            stack.messaging.RecordMessage(record),
            status(stack, "READ", name),
            return_exceptions=True,
        )
        assert not isinstance(outcomes[1], BaseException), outcomes[1]
        assert outcomes[2] is None
        if isinstance(outcomes[0], grpc.aio.AioRpcError):
            found = read_failure(outcomes[0])
            assert (found.reason, found.metadata) == ("WHATSAPP_ID_TAKEN", {"message_id": outcomes[1].message_id})
        else:
            assert not isinstance(outcomes[0], BaseException), outcomes[0]
            assert outcomes[0].message_id == outcomes[1].message_id == message.message_id
        read = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id=name))
        assert read.status == pb.MESSAGE_STATUS_READ
    assert deadlocks(stack) == 0


async def test_of_two_sends_of_a_message_one_wins(stack: Stack) -> None:
    await salon(stack)
    message = await pending(stack)
    calls = [sent(stack, message.message_id, f"wamid.{number}") for number in range(8)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    won = [each for each in outcomes if isinstance(each, pb.Message)]
    assert len(won) == 1
    found = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, message_id=message.message_id))
    assert found.whatsapp_id == won[0].whatsapp_id


async def test_nothing_comes_back_of_an_erased_customer(stack: Stack) -> None:
    await salon(stack)
    for erases_at_once in (False, True):
        message = await pending(stack)
        erase = stack.messaging.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, phone_number=PHONE))
        if erases_at_once:
            await asyncio.gather(erase, sent(stack, message.message_id), return_exceptions=True)
        else:
            await erase
            assert (await failure(sent(stack, message.message_id))).reason == "CUSTOMER_ERASED"
            title = f"{PHONE} is not on WhatsApp"
            assert (await failure(failed(stack, message.message_id, error_title=title))).reason == "CUSTOMER_ERASED"
        kept = str(rows(stack.database_url, "SELECT * FROM messages"))
        assert "wamid" not in kept
        assert PHONE not in kept


async def test_cached_reads_show_what_was_sent(stack: Stack) -> None:
    await salon(stack)
    for rpc in (sent, failed):
        message = await pending(stack)
        conversation = pb.GetConversationRequest(salon_id=SALON, phone_number=PHONE)
        messages = pb.ListMessagesRequest(salon_id=SALON, conversation_id=message.conversation_id)
        await warm(stack.messaging.GetConversation, conversation)
        await warm(stack.messaging.ListMessages, messages)
        expected = await rpc(stack, message.message_id)
        assert (await fresh(stack.messaging.GetConversation, conversation)).messages[0] == expected
        assert (await fresh(stack.messaging.ListMessages, messages)).messages[0] == expected
