"""ReplayWebhookFailures: what could not be recorded is recorded once it can be."""

import asyncio
import json
from typing import Any

import psycopg
import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.webhook.change import Failure
from tests.stack import PHONE, SALON, Stack, deadlocks, failure, fresh, message_request, rows, salon, warm, webhook_body
from tests.test_webhook import ingest, status, text

INSERT = """
    INSERT INTO webhook_failures (salon_id, digest, kind, reason, item, phone_number, user_id)
    VALUES (%s, %s, %s, '-', %s, %s, %s)"""


def store(stack: Stack, item: Any, kind: str = "MESSAGE", *, phone: str | None = None, user: str | None = None) -> None:
    """Store a failure, as if an older version had not been able to read the item."""
    failed = Failure.of(kind, "-", item)
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute(INSERT, [SALON, failed.digest, kind, failed.item, phone, user])


async def replay(stack: Stack, salon_id: str = SALON, **fields: Any) -> dict[str, Any]:
    """Replay failures; return the counts, and the token if there is one."""
    request = pb.ReplayWebhookFailuresRequest(salon_id=salon_id, **fields)
    reply = await stack.messaging.ReplayWebhookFailures(request)
    return {field.name: value for field, value in reply.ListFields()}


def kept(stack: Stack) -> int:
    """Return how many failures there are."""
    return int(rows(stack.database_url, "SELECT count(*) FROM webhook_failures")[0][0])


async def shown(stack: Stack) -> list[str]:
    """Return the whatsapp_ids of the salon's messages, oldest first."""
    found = await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id=SALON, page_size=200))
    return [message.whatsapp_id for message in found.messages][::-1]


async def test_items_of_a_number_are_recorded_once_its_salon_exists(stack: Stack) -> None:
    await salon(stack, "other", phone_number_id="2")
    contact = {"wa_id": "16505550001", "profile": {"name": "Zoë"}}
    messages = [text(number, **{"from": "16505550001"}) for number in range(4)]
    body = webhook_body("404", messages=[*messages, None], statuses=[status(0)], contacts=[contact])
    assert await ingest(stack, body) == {"rejected": 6}
    assert await replay(stack, "") == {"failures": 6}
    await salon(stack, phone_number_id="404")
    assert await replay(stack, SALON) == {}
    assert await replay(stack, "") == {"messages": 4, "statuses": 1, "failures": 1}
    assert await shown(stack) == [f"wamid.{number}" for number in range(4)]
    assert rows(stack.database_url, "SELECT salon_id, item FROM webhook_failures") == [(SALON, "null")]
    assert await replay(stack, "") == {}
    assert await replay(stack) == {"failures": 1}
    assert await ingest(stack, body) == {"duplicates": 6}


async def test_what_can_be_read_now_is_no_failure_any_more(stack: Stack) -> None:
    await salon(stack)
    await ingest(stack, webhook_body(f"10{SALON}", messages=[text(1)]))
    store(stack, text(1))
    store(stack, text(2, **{"from": None}), phone=PHONE)
    store(stack, text(3, **{"from": None}), user="DE.1234")
    store(stack, text(4, **{"from": None}))
    store(stack, status(1), "STATUS")
    store(stack, json.loads(webhook_body("1", messages=[text(5), text(6), {}]))["entry"][0]["changes"][0], "OTHER")
    store(stack, text(7, type="hologram"))
    expected = {"messages": 5, "statuses": 1, "duplicates": 1, "failures": 2}
    assert await replay(stack) == expected
    assert sorted(await shown(stack)) == [f"wamid.{number}" for number in (1, 2, 3, 5, 6, 7)]
    assert kept(stack) == 2
    assert await replay(stack) == {"failures": 2}
    senders = (
        "SELECT whatsapp_id, c.phone_number, user_id FROM messages JOIN conversations AS c USING (conversation_id)"
    )
    assert {("wamid.2", PHONE, None), ("wamid.3", None, "DE.1234")} <= set(rows(stack.database_url, senders))


HOPELESS = [
    *("", "{", '{"id":', "x" * 65_536, "\\ud800", "NaN", "1e999", "9" * 5000, "null", "[]", "7", '"text"'),
    *("[" * 60_000, "[" * 60_000 + "]" * 5000, '{"a":' * 10_000, "[" * 100 + "]" * 100),
    *('{"value": 1}', '{"value": []}', '{"value": {}}', '{"value": {"messages": 1}}', '{"field": "messages"}'),
]


@pytest.mark.parametrize("kind", ["MESSAGE", "STATUS", "OTHER"])
async def test_what_can_not_be_read_stays(stack: Stack, kind: str) -> None:
    await salon(stack)
    for number, item in enumerate(HOPELESS):
        with psycopg.connect(stack.database_url, autocommit=True) as conn:
            conn.execute(INSERT, [SALON, str(number).encode(), kind, item, None, None])
    before = kept(stack)
    assert await replay(stack) == {"failures": before}
    assert await shown(stack) == []
    assert kept(stack) == before
    assert (await replay(stack), kept(stack)) == ({"failures": before}, before)


async def test_pages_replay_each_failure_once_oldest_first(stack: Stack) -> None:
    await salon(stack)
    for number in range(7):
        store(stack, text(number, **({"timestamp": f"{number} o'clock"} if number % 3 == 2 else {})))
    token = ""
    counts: list[dict[str, Any]] = []
    while not counts or token:
        found = await replay(stack, page_size=2, page_token=token)
        token = found.pop("next_page_token", "")
        counts.append(found)
    assert counts == [{"messages": 2}, {"messages": 1, "failures": 1}, {"messages": 1, "failures": 1}, {"messages": 1}]
    assert await shown(stack) == ["wamid.0", "wamid.1", "wamid.3", "wamid.4", "wamid.6"]


async def test_concurrent_replays_record_each_item_once(stack: Stack) -> None:
    await salon(stack)
    for number in range(30):
        store(stack, text(number))

    async def until_done() -> int:
        while True:
            try:
                return int((await replay(stack)).get("messages", 0))
            except Exception as error:
                found = await failure(_raise(error))
                assert (found.code.name, found.reason) == ("ABORTED", "CONFLICT")

    await asyncio.gather(*(until_done() for _ in range(4)))
    assert len(await shown(stack)) == 30
    assert (kept(stack), deadlocks(stack)) == (0, 0)


async def _raise(error: Exception) -> None:
    raise error


async def test_nothing_comes_back_of_an_erased_customer(stack: Stack) -> None:
    await salon(stack)
    erase = pb.EraseCustomerRequest(salon_id=SALON, phone_number=PHONE)
    for number in range(10):
        await stack.messaging.RecordMessage(message_request(f"wamid.known-{number}"))
        store(stack, text(number, **{"from": PHONE[1:], "id": f"wamid.secret-{number}"}), phone=PHONE)
        await asyncio.gather(stack.messaging.EraseCustomer(erase), replay(stack), return_exceptions=True)
        await stack.messaging.EraseCustomer(erase) if kept(stack) else None
        tables = "SELECT whatsapp_id, content FROM messages UNION ALL SELECT item, reason FROM webhook_failures"
        assert "secret" not in str(rows(stack.database_url, tables))


async def test_cached_reads_show_what_was_replayed(stack: Stack) -> None:
    await salon(stack)
    message = await stack.messaging.RecordMessage(message_request())
    store(stack, text(2, **{"from": PHONE[1:]}))
    conversation = pb.GetConversationRequest(salon_id=SALON, phone_number=PHONE)
    messages = pb.ListMessagesRequest(salon_id=SALON, conversation_id=message.conversation_id)
    await warm(stack.messaging.GetConversation, conversation)
    await warm(stack.messaging.ListMessages, messages)
    assert await replay(stack) == {"messages": 1}
    assert len((await fresh(stack.messaging.GetConversation, conversation)).messages) == 2
    assert len((await fresh(stack.messaging.ListMessages, messages)).messages) == 2


async def test_an_unknown_salon_is_not_found_and_another_salon_s_token_is_refused(stack: Stack) -> None:
    await salon(stack)
    assert (await failure(replay(stack, "nobody"))).reason == "SALON_NOT_FOUND"
    for number in range(2):
        store(stack, text(number, timestamp="soon"))
    token = (await replay(stack, page_size=1))["next_page_token"]
    for asked in (replay(stack, "", page_token=token), replay(stack, page_token="nonsense")):  # noqa: S106
        assert (await failure(asked)).fields == ["page_token"]
