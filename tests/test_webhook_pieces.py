"""Webhook bodies that are recorded in several transactions, and salons that are created or deleted meanwhile."""

import asyncio
import json

import grpc
import psycopg
import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.ops.v1.ops_pb2 import InvalidateSalonRequest
from services.messaging import salons
from services.messaging.message_write_queries import message_lock
from services.messaging.webhook.change import MOST_ITEMS
from tests.load import tells_when_to_retry, until, waiting_for_a_lock
from tests.locks import holding
from tests.stack import SALON, Stack, failure, message_request, rows, running, salon, webhook_body
from tests.test_webhook import ingest, refused, signed, status, text, written

ADVISORY = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
CUSTOMER = "16505550001"


def test_two_salons_never_share_an_advisory_lock() -> None:
    names = [f"wamid.{number}" for number in range(10_000)]
    salon_ids = ("salon-1", "salon-2", "salon-12", "salon")
    taken = [{message_lock(salon_id, name) for name in names} for salon_id in salon_ids]
    assert [len(locks) for locks in taken] == [64] * 4
    assert len(set().union(*taken)) == 4 * 64


async def test_a_transaction_of_a_body_holds_few_locks_and_one_connection(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await ingest(stack, webhook_body("1", messages=[text(0, **{"from": CUSTOMER})]))
    body = webhook_body("1", messages=[text(n, **{"from": CUSTOMER}) for n in range(1, 3000)])
    async with holding(stack.database_url, "SELECT FROM conversations FOR UPDATE") as holder:
        recording = asyncio.ensure_future(ingest(stack, body))
        await until(lambda: waiting_for_a_lock(stack.database_url, 1))
        cursor = await holder.execute(ADVISORY)
        assert ((await cursor.fetchone()) or [99])[0] <= 64
        await holder.rollback()
        assert await recording == {"messages": 2999}


async def test_a_locked_salon_blocks_no_other_and_its_rest_is_recorded_by_the_repeat(stack: Stack) -> None:
    for name in ("1", "2"):
        await salon(stack, f"salon-{name}", phone_number_id=name)
    await ingest(stack, webhook_body("1", messages=[text(0, **{"from": CUSTOMER})]))
    locked = [text(n, **{"from": CUSTOMER if n == MOST_ITEMS * 2 else f"1650556{n:04}"}) for n in range(1, 500)]
    other = {"messages": [text(n) for n in range(300)], "statuses": [status(n) for n in range(300)]}
    parts = (webhook_body("1", messages=locked), webhook_body("2", **other))
    body = json.dumps({"entry": [entry for part in parts for entry in json.loads(part)["entry"]]}).encode()
    async with holding(stack.database_url, "SELECT FROM conversations WHERE salon_id = 'salon-1' FOR UPDATE"):
        error = await refused(stack, body)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "CONFLICT")
    assert tells_when_to_retry(error)
    counts = "SELECT salon_id, count(*) FROM messages GROUP BY 1 ORDER BY 1"
    assert rows(stack.database_url, counts) == [("salon-1", 1 + MOST_ITEMS), ("salon-2", 300)]
    assert await ingest(stack, body) == {"messages": 499 - MOST_ITEMS, "duplicates": 600 + MOST_ITEMS}
    assert await ingest(stack, body) == {"duplicates": 1099}


async def test_a_canceled_body_is_recorded_once_by_its_repeats(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    kinds = {"messages": [text(n, **{"from": f"1650556{n:04}"}) for n in range(2000)] + [None], "statuses": [status(1)]}
    request = signed(webhook_body("1", **kinds))
    for milliseconds in (20, 60, 120, 250):
        try:
            await stack.messaging.IngestWebhook(request, timeout=milliseconds / 1000)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    replies = await asyncio.gather(*(stack.messaging.IngestWebhook(request) for _ in range(3)))
    assert all(reply.messages + reply.statuses + reply.rejected + reply.duplicates == 2002 for reply in replies)
    assert written(stack) == (2000, 2000, 1)
    assert rows(stack.database_url, "SELECT count(*) FROM webhook_failures") == [(1,)]


async def test_several_transactions_give_the_same_counts_as_one(stack: Stack) -> None:
    """Duplicates, failures and unknown kinds are in different pieces, in any order of the keys of the body."""
    await salon(stack, phone_number_id="1")
    items = [text(n % 450) for n in range(500)] + [7, text("u", type="hologram")]
    statuses = [status(n % 300) for n in range(350)] + [status(1, status="hologram"), {}]
    change = {"statuses": statuses, "messages": items, "metadata": {"phone_number_id": "1"}, "errors": [{"code": 1}]}
    body = json.dumps({"entry": [{"changes": [{"value": change}]}], "object": "whatsapp_business_account"}).encode()
    assert await ingest(stack, body) == {
        "messages": 450,
        "statuses": 300,
        "duplicates": 100,
        "unknown": 3,
        "rejected": 2,
    }
    assert await ingest(stack, body) == {"duplicates": 855}


async def remove_salon(stack: Stack) -> None:
    """Remove the salon, as if it had moved to another system."""
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute("DELETE FROM resources WHERE salon_id = %s", [SALON])
        conn.execute("DELETE FROM salons WHERE salon_id = %s", [SALON])
    await stack.ops["booking"].InvalidateSalon(InvalidateSalonRequest(salon_id=SALON))
    await asyncio.sleep(1.1)  # the near cache's lease


def first_contact(number: int) -> pb.RecordMessageRequest:
    """Return a request that begins a conversation, which requires a known salon."""
    return message_request(f"wamid.{number}", phone_number=f"+491511234{number:04}")


async def test_a_known_salon_is_read_again_after_its_ttl(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(salons, "KNOWN_SECONDS", 1)
    async with running(database_url, redis_url) as stack:
        await salon(stack)
        await stack.messaging.RecordMessage(first_contact(1))
        await remove_salon(stack)
        error = await failure(stack.messaging.RecordMessage(first_contact(2)))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")
        await stack.messaging.RecordMessage(message_request("wamid.9", phone_number="+4915112340001"))  # it exists
        await salon(stack)
        await stack.messaging.RecordMessage(first_contact(3))


async def test_a_salon_that_is_not_found_is_read_again(stack: Stack) -> None:
    await salon(stack, region_code="DE")
    await stack.messaging.RecordMessage(first_contact(1))
    await remove_salon(stack)
    await stack.messaging.RecordMessage(first_contact(2))  # cached for a while
    national = message_request("wamid.3", phone_number="0151 12345670")
    assert (await failure(stack.messaging.RecordMessage(national))).reason == "SALON_NOT_FOUND"
    assert (await failure(stack.messaging.RecordMessage(first_contact(4)))).reason == "SALON_NOT_FOUND"
    await salon(stack, region_code="DE")
    await stack.messaging.RecordMessage(first_contact(4))
