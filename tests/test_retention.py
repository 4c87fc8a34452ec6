"""Retention: expired data is deleted, everything else stays."""

import asyncio
from typing import Any

import pytest
from pydantic import SecretStr

from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging import retention
from services.messaging.retention import Retention
from services.messaging.settings import MessagingSettings
from tests.kinds import edit, reaction, revoke
from tests.stack import SALON, SECRET, Fields, Stack, message_request, rows, salon, warm, webhook_body
from tests.test_erase_customer import figures
from tests.test_webhook import ingest, status, text

INDEXES_OF_EARLY = {
    "delete_early_statuses": "message_status_events_early",
    "delete_early_amendments": "message_amendments_early",
}


async def retain(stack: Stack, **days: int) -> None:
    """Run the retention job once with these settings."""
    server = stack.servers["messaging"]
    settings = MessagingSettings(whatsapp_app_secret=SecretStr(SECRET))
    update: dict[str, Any] = {f"retention_{kind}": after for kind, after in days.items()}
    settings = settings.model_copy(update=update)
    await Retention(server.cache, server.database, settings).delete()


def older(stack: Stack, table: str, days: int, which: str = "true", column: str = "") -> None:
    """Make rows older."""
    column = column or ("received_at" if table == "raw_messages" else "created_at")
    rows(
        stack.database_url, f"UPDATE {table} SET {column} = {column} - interval '{days} days' WHERE {which} RETURNING 1"
    )


def count(stack: Stack, table: str) -> Any:
    """Return the number of rows."""
    return rows(stack.database_url, f"SELECT count(*) FROM {table}")[0][0]


async def filled(stack: Stack, messages: int = 4) -> list[pb.Message]:
    """Give a salon messages with raw items, webhook failures, and AI messages; half of each are 10 days old."""
    await salon(stack, phone_number_id="1")
    items = [text(number) for number in range(messages)]
    poison = [text(id=None, timestamp=str(number)) for number in range(messages)]
    assert (await ingest(stack, webhook_body("1", messages=items + poison)))["rejected"] == messages
    listed = await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id=SALON))
    ai_message: Fields = {
        "salon_id": SALON,
        "conversation_id": listed.messages[0].conversation_id,
        "model": "m",
        "role": 3,
    }
    for number in range(messages):
        await stack.messaging.RecordAiMessage(pb.RecordAiMessageRequest(**ai_message, content=f"ai_message {number}"))
    for table, key in (
        ("raw_messages", "message_id"),
        ("webhook_failures", "digest"),
        ("ai_messages", "ai_message_id"),
    ):
        older(stack, table, 10, f"{key} IN (SELECT {key} FROM {table} ORDER BY {key} LIMIT {messages // 2})")
    return list(listed.messages)


async def test_nothing_expires_by_default(stack: Stack) -> None:
    await filled(stack)
    for table in ("raw_messages", "webhook_failures", "ai_messages"):
        older(stack, table, 10_000)
    await retain(stack)
    assert (count(stack, "raw_messages"), count(stack, "webhook_failures")) == (4, 4)
    assert count(stack, "ai_messages WHERE content <> ''") == 4


@pytest.mark.parametrize(("days", "left"), [(5, 2), (10, 2), (11, 4)])
async def test_expired_data_is_deleted(stack: Stack, days: int, left: int) -> None:
    messages = await filled(stack)
    before = await figures(stack)
    await retain(stack, raw_items=days, failures=days, ai_messages=days)
    assert (count(stack, "raw_messages"), count(stack, "webhook_failures")) == (left, left)
    assert count(stack, "ai_messages WHERE content <> ''") == left
    found = [
        await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, message_id=message.message_id))
        for message in messages
    ]
    assert sum(bool(message.raw_json) for message in found) == left
    assert {message.content for message in found} == {"hi"}
    assert await figures(stack) == before


async def test_each_setting_deletes_only_its_kind_of_data(stack: Stack) -> None:
    await filled(stack)
    await retain(stack, failures=5)
    assert (count(stack, "raw_messages"), count(stack, "webhook_failures")) == (4, 2)
    assert count(stack, "ai_messages WHERE content <> ''") == 4


async def test_cached_lists_of_ai_messages_are_invalidated(stack: Stack) -> None:
    [message, *_] = await filled(stack)
    request = pb.ListAiMessagesRequest(salon_id=SALON, conversation_id=message.conversation_id)
    before = await warm(stack.messaging.ListAiMessages, request)
    await retain(stack, ai_messages=5)
    after = await stack.messaging.ListAiMessages(request)
    assert [sum(bool(ai_message.content) for ai_message in listed.ai_messages) for listed in (before, after)] == [4, 2]


async def test_several_processes_delete_more_than_a_batch_concurrently(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = (
        "INSERT INTO webhook_failures (salon_id, digest, kind, reason, item, created_at)"
        " SELECT 'salon-' || n % 3, n::text::bytea, 'OTHER', '', '', now() - interval '6 days'"
        f" FROM generate_series(1, {3 * retention.ROWS + 7}) AS n RETURNING 1"
    )
    rows(stack.database_url, query)
    await asyncio.gather(*(retain(stack, failures=5) for _ in range(4)))
    while count(stack, "webhook_failures"):  # a job does nothing while another one runs
        await retain(stack, failures=5)


async def test_texts_of_many_salons_are_emptied(stack: Stack) -> None:
    for number in range(5):
        await salon(stack, f"salon-{number}")
        message = await stack.messaging.RecordMessage(message_request(salon_id=f"salon-{number}"))
        ai_message: Fields = {"salon_id": f"salon-{number}", "conversation_id": message.conversation_id, "model": "m"}
        await stack.messaging.RecordAiMessage(
            pb.RecordAiMessageRequest(**ai_message, role=pb.AI_ROLE_USER, content="x")
        )
    older(stack, "ai_messages", 6, "salon_id <> 'salon-2'")
    await retain(stack, ai_messages=5)
    assert rows(stack.database_url, "SELECT salon_id FROM ai_messages WHERE content <> ''") == [("salon-2",)]


async def test_a_status_without_its_message_is_deleted_after_30_days(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await stack.messaging.RecordMessage(message_request("wamid.9", direction=2, type=14))
    assert await ingest(stack, webhook_body("1", statuses=[status(n) for n in (1, 2, 3, 9)])) == {"statuses": 4}
    early = "SELECT whatsapp_id FROM message_status_events WHERE early_since IS NOT NULL ORDER BY 1"
    assert rows(stack.database_url, early) == [("wamid.1",), ("wamid.2",), ("wamid.3",)]
    older(stack, "message_status_events", 29, column="early_since")
    await retain(stack)
    assert count(stack, "message_status_events") == 4
    late = await stack.messaging.RecordMessage(message_request("wamid.2", direction=2, type=14))
    assert late.status == pb.MESSAGE_STATUS_READ
    older(stack, "message_status_events", 1, "whatsapp_id <> 'wamid.3'", column="early_since")
    await retain(stack)
    left = rows(stack.database_url, "SELECT whatsapp_id, early_since IS NULL FROM message_status_events ORDER BY 1")
    assert left == [("wamid.2", True), ("wamid.3", False), ("wamid.9", True)]


async def test_a_status_in_the_body_of_its_message_does_not_count_as_early(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    assert await ingest(stack, webhook_body("1", messages=[text(1)], statuses=[status(1)])) == {
        "messages": 1,
        "statuses": 1,
    }
    assert rows(stack.database_url, "SELECT early_since FROM message_status_events") == [(None,)]


async def test_an_amendment_without_its_message_is_deleted_after_30_days(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    at = 1749416390
    early = [
        reaction("wamid.11", "wamid.1", at),
        edit("wamid.12", "wamid.2", at, "new"),
        revoke("wamid.13", "wamid.3", at),
    ]
    await ingest(stack, webhook_body("1", messages=[*early, text(9), reaction("wamid.19", "wamid.9", at)]))
    marked = "SELECT whatsapp_id FROM message_amendments WHERE early_since IS NOT NULL ORDER BY 1"
    assert rows(stack.database_url, marked) == [("wamid.11",), ("wamid.12",), ("wamid.13",)]
    older(stack, "message_amendments", 29, column="early_since")
    await retain(stack)
    assert count(stack, "message_amendments") == 4
    await ingest(stack, webhook_body("1", messages=[text(2)]))
    older(stack, "message_amendments", 1, "whatsapp_id <> 'wamid.13'", column="early_since")
    await retain(stack)
    left = rows(stack.database_url, "SELECT whatsapp_id, early_since IS NULL FROM message_amendments ORDER BY 1")
    assert left == [("wamid.12", True), ("wamid.13", False), ("wamid.19", True)]
    await ingest(stack, webhook_body("1", messages=[reaction("wamid.29", "wamid.9", at + 1, ""), text(1)]))
    listed = await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id=SALON))
    found = {one.whatsapp_id: (one.content, len(one.reactions)) for one in listed.messages}
    assert (found["wamid.2"], found["wamid.9"][1], found["wamid.1"][1]) == (("new", 0), 0, 0)


@pytest.mark.parametrize("delete", ["delete_raw_items", "delete_failures", *INDEXES_OF_EARLY])
async def test_expired_rows_are_found_by_an_index(stack: Stack, delete: str) -> None:
    plans: list[str] = []

    class Explaining:
        """A connection that explains statements instead of running them."""

        async def execute(self, query: bytes, params: Any) -> Any:
            cursor = await conn.execute(b"EXPLAIN " + query, params)
            plans.extend(line for (line,) in await cursor.fetchall())
            return cursor

    async with stack.servers["messaging"].database.connection() as conn:
        await conn.execute("SET enable_seqscan = off")
        await getattr(retention, delete)(Explaining(), 5)
    index = {"delete_raw_items": "raw_messages_received", "delete_failures": "idx_webhook_failures_salon_created"}
    assert any((index | INDEXES_OF_EARLY)[delete] in line for line in plans), plans


async def test_old_raw_items_of_amendments_are_deleted_and_what_they_did_stays(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    items = [text(1), edit("wamid.2", "wamid.1", 1749416390, "new"), reaction("wamid.3", "wamid.9", 1749416391)]
    await ingest(stack, webhook_body("1", messages=items))
    older(stack, "message_amendments", 10, "kind = 'EDIT'", column="received_at")
    await retain(stack, raw_items=7)
    kept = "SELECT whatsapp_id, content, item IS NULL FROM message_amendments ORDER BY 1"
    assert rows(stack.database_url, kept) == [("wamid.2", "new", True), ("wamid.3", "❤️", False)]
    listed = await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id=SALON))
    assert [(one.content, one.HasField("edited_time")) for one in listed.messages] == [("new", True)]
