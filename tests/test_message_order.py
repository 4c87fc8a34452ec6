"""Messages of the same time are listed in the order of their arrival."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.message_ids import MessageIds
from tests.stack import SALON, Stack, message_request, salon, walk, webhook_body
from tests.test_webhook import ingest, text


async def listed(stack: Stack, **filters: Any) -> list[str]:
    """Return the whatsapp_ids of a list over several pages, oldest first."""
    found = await walk(stack.messaging.ListMessages, pb.ListMessagesRequest(salon_id=SALON, **filters), 7)
    return [message.whatsapp_id for message in reversed(found)]


async def test_thirty_messages_of_one_second_keep_the_order_of_their_body(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    assert await ingest(stack, webhook_body("1", messages=[text(number) for number in range(30)])) == {"messages": 30}
    expected = [f"wamid.{number}" for number in range(30)]
    assert await listed(stack) == expected
    assert await listed(stack, phone_number="+16505551234") == expected
    conversation = await stack.messaging.GetConversation(
        pb.GetConversationRequest(salon_id=SALON, phone_number="+16505551234", message_limit=30)
    )
    assert [message.whatsapp_id for message in reversed(conversation.messages)] == expected
    assert {UUID(message.message_id).version for message in conversation.messages} == {7}


async def test_messages_of_one_second_in_several_bodies_keep_the_order_of_the_bodies(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    for number in range(12):
        await ingest(stack, webhook_body("1", messages=[text(f"{number}.a"), text(f"{number}.b")]))
    assert await listed(stack) == [f"wamid.{number}.{part}" for number in range(12) for part in "ab"]


async def test_recorded_and_received_messages_of_one_time_are_in_one_order(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    for number in range(6):
        await ingest(stack, webhook_body("1", messages=[text(f"{number}.in")]))
        sent = {"phone_number": "+16505551234", "direction": pb.MESSAGE_DIRECTION_OUTBOUND}
        request = message_request(f"wamid.{number}.out", send_time=Timestamp(seconds=1749416383), **sent)
        await stack.messaging.RecordMessage(request)
    assert await listed(stack) == [f"wamid.{number}.{part}" for number in range(6) for part in ("in", "out")]


async def test_a_body_of_several_transactions_keeps_its_order(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    body = webhook_body("1", messages=[text(number) for number in range(450)])
    other = webhook_body("1", messages=[text(f"o{number}", **{"from": "4915112345678"}) for number in range(150)])
    await asyncio.gather(ingest(stack, body), ingest(stack, other))
    assert await listed(stack, phone_number="+16505551234") == [f"wamid.{number}" for number in range(450)]
    assert await listed(stack, phone_number="+4915112345678") == [f"wamid.o{number}" for number in range(150)]


async def test_a_later_message_with_an_earlier_time_is_listed_by_its_time(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    times = (5, 3, 4, 3)
    messages = [text(number, timestamp=str(1749416383 + second)) for number, second in enumerate(times)]
    await ingest(stack, webhook_body("1", messages=messages))
    assert await listed(stack) == ["wamid.1", "wamid.3", "wamid.2", "wamid.0"]


def test_ids_are_ordered_by_time_then_by_arrival_even_if_the_clock_stops_or_goes_back() -> None:
    readings = iter([5_000_000_000_000_000_000] * 50 + [4_999_999_999_000_000_000] * 50)
    ids = MessageIds(lambda: next(readings))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    made = [UUID(ids.new(now)) for _ in range(100)]
    assert all(earlier < later for earlier, later in pairwise(made))
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
    assert {one.int >> 80 for one in made} == {int(now.timestamp() * 1000)}


def test_ids_hold_any_time_that_a_message_can_have() -> None:
    ids = MessageIds()
    times = [datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]
    times += [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms) for ms in (1, 0)]
    made = [UUID(ids.new(moment)) for moment in times]
    assert sorted(made) == [made[0], made[3], made[2], made[1]]
