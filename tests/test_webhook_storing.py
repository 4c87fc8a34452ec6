"""The statements and rows of a webhook body, and bodies that arrive while the booking service is down."""

import asyncio
import json
from typing import Any

import grpc
import pytest

from parlor.booking.v1.booking_pb2 import GetSalonByPhoneNumberIdRequest
from parlor.messaging.v1 import messaging_pb2 as pb
from tests.load import tells_when_to_retry
from tests.stack import SALON, Stack, executed, quiet, rows, running, salon, warm, webhook_body
from tests.test_webhook import ingest, refused, status, text, written


def crowd(count: int, customers: int, first: int = 0) -> dict[str, Any]:
    """Return messages of customers with and without a phone number, and the same number of statuses."""
    senders = [{"from": f"1650555{n:04}", "from_user_id": f"US.{n}"} for n in range(customers)]
    hidden = [{"from": None, "from_user_id": f"DE.{n}"} for n in range(customers)]
    numbers = range(first, first + count)
    messages = [text(n, **(hidden if n % 2 else senders)[n // 2 % customers]) for n in numbers]
    return {"messages": messages, "statuses": [status(n) for n in numbers]}


async def test_a_body_takes_a_fixed_number_of_statements(database_url: str, redis_url: str) -> None:
    async with quiet(database_url, redis_url) as stack:
        for name in ("1", "2", "3"):
            await salon(stack, f"salon-{name}", phone_number_id=name)
        bodies = [
            webhook_body("1", **crowd(1, 1)),
            webhook_body("1", **crowd(50, 20, 100)),
            webhook_body("1", **crowd(50, 20, 1000)).replace(b'"wamid.10', b'"wamid.new.10'),
        ]
        parts = [json.loads(webhook_body(name, **crowd(50, 20, 2000)))["entry"] for name in ("1", "2", "3")]
        bodies.append(json.dumps({"entry": [entry for entries in parts for entry in entries]}).encode())
        costs = []
        for body in bodies:
            before = await executed(stack, "messaging")
            reply = await ingest(stack, body)
            costs.append(await executed(stack, "messaging") - before)
            assert reply["messages"] == reply["statuses"]
            assert set(reply) == {"messages", "statuses"}
        assert reply["messages"] == 150
        before = await executed(stack, "messaging")
        found = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id="salon-1", whatsapp_id="wamid.100"))
        assert (found.raw_json != "", len(found.status_events)) == (True, 1)
        assert await executed(stack, "messaging") == before + 1
        # For each salon: BEGIN, locks, phone numbers, messages, statuses, folding of statuses, COMMIT.
        assert costs == [7, 7, 7, 3 * 7]
        assert written(stack) == (2 + 38 + 40 + 40, 251, 251)


async def test_a_message_of_an_unknown_type_is_stored(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    body = webhook_body("1", messages=[text(1, type="hologram", hologram={"caption": "hi", "id": 7}), text(2)])
    assert await ingest(stack, body) == {"messages": 1, "unknown": 1}
    assert await ingest(stack, body) == {"duplicates": 2}
    found = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id="wamid.1"))
    assert (found.type, found.content) == (pb.MESSAGE_TYPE_UNKNOWN, "hi")


async def test_the_raw_item_is_stored_unchanged(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    odd = '{"a": [1e400, -1e999, 0.1, 12345678901234567890, 1.0, "\\ud800", "\\u0000", null, true, {}, [], "💇", 2e-7]}'
    body = webhook_body("1", messages=[text(1, odd="ODD")]).replace(b'"ODD"', odd.encode())
    assert await ingest(stack, body) == {"messages": 1}
    found = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id="wamid.1"))
    assert "Infinity" not in found.raw_json
    kept = json.loads(odd.replace("-1e999", '"-1e999"').replace("1e400", '"1e400"'))
    assert json.loads(found.raw_json) == {**text(1), "odd": kept}


async def test_a_new_salon_gets_its_messages_at_once(stack: Stack) -> None:
    body = webhook_body("1", messages=[text(1)])
    for _ in range(2):
        assert await ingest(stack, body) == {"rejected": 1}
    await salon(stack, phone_number_id="1")
    assert await ingest(stack, body) == {"messages": 1}


async def test_messages_follow_a_phone_number_id_to_another_salon(stack: Stack) -> None:
    await salon(stack, "salon-1", phone_number_id="1")
    for number in range(3):  # read from booking, then from the cache, then from this process
        assert await ingest(stack, webhook_body("1", messages=[text(number)])) == {"messages": 1}
        await stack.servers["booking"].cache.settle()
    await salon(stack, "salon-1", phone_number_id="2")
    await salon(stack, "salon-2", phone_number_id="1")
    async with asyncio.timeout(2):  # the near cache's lease, and a busy machine
        for number in range(3, 1000):
            assert await ingest(stack, webhook_body("1", messages=[text(number)])) == {"messages": 1}
            if rows(stack.database_url, "SELECT FROM messages WHERE salon_id = 'salon-2'"):
                break


async def test_a_salon_is_read_once(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await warm(stack.booking.GetSalonByPhoneNumberId, GetSalonByPhoneNumberIdRequest(phone_number_id="1"))
    counters = stack.servers["booking"].cache.counters
    before = counters.hits, counters.misses
    for number in range(3):
        assert await ingest(stack, webhook_body("1", messages=[text(number)])) == {"messages": 1}
    assert (counters.hits, counters.misses) == before


async def test_a_body_of_a_cached_salon_is_recorded_while_booking_is_down(stack: Stack) -> None:
    for name in ("1", "2"):
        await salon(stack, f"salon-{name}", phone_number_id=name)
    await warm(stack.booking.GetSalonByPhoneNumberId, GetSalonByPhoneNumberIdRequest(phone_number_id="1"))
    await stack.servers["booking"].drain()
    known, other = webhook_body("1", messages=[text(1)]), webhook_body("2", messages=[text(1)])
    assert await ingest(stack, known) == {"messages": 1}
    mixed = json.dumps(
        {"entry": [*json.loads(webhook_body("1", messages=[text(2)]))["entry"], *json.loads(other)["entry"]]}
    )
    for body in (other, mixed.encode()):
        error = await refused(stack, body)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "BOOKING_UNAVAILABLE")
        assert tells_when_to_retry(error)
    assert written(stack) == (1, 2, 0)  # the items of the known salon are recorded nevertheless


async def test_a_body_refused_while_booking_was_down_is_recorded_once_later(database_url: str, redis_url: str) -> None:
    body = webhook_body("1", messages=[text(1)], statuses=[status(2)])
    async with running(database_url, redis_url) as stack:
        await salon(stack, phone_number_id="1")
        await stack.servers["booking"].drain()
        assert (await refused(stack, body)).reason == "BOOKING_UNAVAILABLE"
        assert written(stack) == (0, 0, 0)
    async with running(database_url, redis_url) as stack:
        replies = await asyncio.gather(*(ingest(stack, body) for _ in range(3)))
        assert sum(reply.get("messages", 0) + reply.get("statuses", 0) for reply in replies) == 2
        assert written(stack) == (1, 1, 1)


async def test_a_truncated_or_too_large_body_writes_nothing(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    body = webhook_body("1", messages=[text(1)], statuses=[status(2)])
    for end in (1, 10, len(body) // 2, len(body) - 1):
        error = await refused(stack, body[:end])
        assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["payload"])
    error = await refused(stack, body + b" " * 8_388_608)
    assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["payload"])
    with pytest.raises(grpc.aio.AioRpcError) as too_large:  # grpcio's core refuses it, without details
        await ingest(stack, body + b" " * 10_000_000)
    assert too_large.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert written(stack) == (0, 0, 0)


async def test_a_message_has_the_language_of_its_salon(stack: Stack) -> None:
    made = await salon(stack, phone_number_id="1", language_code="pt")
    await ingest(stack, webhook_body("1", messages=[text(1)]))
    assert rows(stack.database_url, "SELECT language FROM messages") == [(made.language_code,)]
