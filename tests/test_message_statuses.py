"""Statuses of messages: any order of arrival has the same result, and no status goes backwards."""

import asyncio
from itertools import permutations

from google.protobuf.timestamp_pb2 import Timestamp

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import PHONE, SALON, Fields, Stack, message_request, rows, salon

# From the weakest to the strongest.
ORDER = [
    pb.MESSAGE_STATUS_PENDING,
    pb.MESSAGE_STATUS_SENT,
    pb.MESSAGE_STATUS_FAILED,
    pb.MESSAGE_STATUS_DELIVERED,
    pb.MESSAGE_STATUS_READ,
]


async def record(stack: Stack, whatsapp_id: str) -> pb.Message:
    """Record an outbound message."""
    template: Fields = {"direction": "MESSAGE_DIRECTION_OUTBOUND", "type": "MESSAGE_TYPE_TEMPLATE"}
    return await stack.messaging.RecordMessage(message_request(whatsapp_id, **template))


async def report(stack: Stack, whatsapp_id: str, status: pb.MessageStatus.ValueType, second: int = 0) -> pb.Message:
    """Record a status of a message."""
    event: Fields = {"whatsapp_id": whatsapp_id, "status": status, "event_time": Timestamp(seconds=second)}
    return await stack.messaging.RecordMessageStatus(pb.RecordMessageStatusRequest(salon_id=SALON, **event))


async def test_the_status_does_not_depend_on_the_order_of_arrival(stack: Stack) -> None:
    await salon(stack)

    async def play(number: int, events: tuple[pb.MessageStatus.ValueType | None, ...]) -> None:
        """Record a message where `events` has None; it never goes backwards."""
        furthest = 0
        for event in events:
            if event is None:
                message = await record(stack, f"wamid.{number}")
            else:
                message = await report(stack, f"wamid.{number}", event)
                furthest = max(furthest, ORDER.index(event))
            assert message.status == ORDER[furthest]
            assert (message.salon_id, message.whatsapp_id) == (SALON, f"wamid.{number}")

    orders = [order for size in range(5) for order in permutations([None, *ORDER[1:]], size + 1) if None in order]
    assert sum(len(order) == 5 for order in orders) == 24 * 5
    await asyncio.gather(*(play(number, order) for number, order in enumerate(orders)))


async def test_statuses_concurrent_with_their_message_are_not_lost(stack: Stack) -> None:
    await salon(stack)

    async def play(whatsapp_id: str) -> None:
        statuses = (report(stack, whatsapp_id, status) for status in ORDER[1:])
        await asyncio.gather(record(stack, whatsapp_id), *statuses)

    await asyncio.gather(*(play(f"wamid.{number}") for number in range(20)))
    assert rows(stack.database_url, "SELECT status, count(*) FROM messages GROUP BY 1") == [("READ", 20)]


async def test_a_repeated_status_changes_nothing(stack: Stack) -> None:
    await salon(stack)
    await record(stack, "wamid.1")
    first = await report(stack, "wamid.1", pb.MESSAGE_STATUS_READ, 1000)
    assert await report(stack, "wamid.1", pb.MESSAGE_STATUS_READ, 2000) == first
    read: Fields = {"salon_id": SALON, "whatsapp_id": "wamid.1", "status": pb.MESSAGE_STATUS_READ}
    for _ in range(2):
        assert await stack.messaging.RecordMessageStatus(pb.RecordMessageStatusRequest(**read)) == first
    query = "SELECT extract(epoch FROM occurred_at)::int FROM message_status_events ORDER BY 1"
    assert rows(stack.database_url, query) == [(1000,), (2000,)]


async def test_a_status_of_an_inbound_message_does_not_change_it(stack: Stack) -> None:
    await salon(stack)
    received = await stack.messaging.RecordMessage(message_request())
    assert await report(stack, "wamid.1", pb.MESSAGE_STATUS_FAILED) == received


async def test_a_status_of_another_salon_does_not_change_the_message(stack: Stack) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await record(stack, "wamid.1")
    read: Fields = {"salon_id": "salon-2", "whatsapp_id": "wamid.1", "status": pb.MESSAGE_STATUS_READ}
    await stack.messaging.RecordMessageStatus(pb.RecordMessageStatusRequest(**read))
    wanted = pb.GetConversationRequest(salon_id=SALON, phone_number=PHONE)
    assert (await stack.messaging.GetConversation(wanted)).messages[0].status == pb.MESSAGE_STATUS_PENDING
