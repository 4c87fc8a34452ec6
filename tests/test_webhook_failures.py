"""Webhook items that can't be recorded are stored once, with the reason; the others are recorded."""

import json
from collections.abc import Sequence
from typing import Any

import grpc
import psycopg
import pytest

from ops.indexes import check_plans
from ops.recording import Statement
from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import SALON, Stack, failure, salon, walk, webhook_body
from tests.test_webhook import ingest, signed, status, text

MESSAGE, STATUS, OTHER = pb.WebhookItemKind.values()[1:]


async def failures(stack: Stack, page_size: int = 0) -> list[pb.WebhookFailure]:
    """Return the failures of the salon, newest first."""
    return await walk(
        stack.messaging.ListWebhookFailures, pb.ListWebhookFailuresRequest(salon_id=SALON), page_size or 200
    )


def reader(value: Any) -> Any:
    """Return a JSON value as it is stored: numbers that do not fit a float become text."""
    return json.loads(json.dumps(value).replace("Infinity", '"Infinity"'))


BAD: list[tuple[str, Any, str]] = [
    ("messages", text(0, **{"from": None}), "from: neither a phone number nor a user id"),
    ("messages", text(0, **{"from": "0151"}), "from: not a phone number"),
    ("messages", text(0, **{"from": 49151}), "from: not a phone number"),
    ("messages", text(0, id=None), "id: Field required"),
    ("messages", text(0, id="a\0b"), "id: contains NUL"),
    ("messages", text(0, id="\udc00"), "id: contains half a surrogate pair"),
    ("messages", text(0, id="x" * 257), "id: "),
    ("messages", text(0, timestamp=True), "timestamp: not the seconds since 1970"),
    ("messages", text(0, timestamp=1e400), "timestamp: not the seconds since 1970"),
    ("messages", text(0, type=[]), "type: "),
    ("messages", text(0, type="reaction", reaction={"emoji": "❤"}), "reaction: names no message"),
    ("messages", text(0, type="revoke", revoke=7), "revoke: names no message"),
    ("messages", text(0, text={"body": {"a": 1}}), "content: "),
    ("messages", None, "is not an object"),
    ("statuses", status(0, id=None), "id: Field required"),
    ("statuses", status(0, timestamp="soon"), "timestamp: not the seconds since 1970"),
    ("statuses", status(0, status=7), "status: "),
    ("statuses", [], "is not an object"),
]


@pytest.mark.parametrize(("kind", "item", "reason"), BAD)
async def test_an_unreadable_item_is_stored_with_its_reason(stack: Stack, kind: str, item: Any, reason: str) -> None:
    await salon(stack, phone_number_id="1")
    neighbors = {"messages": [text(1), text(2)], "statuses": [status(3), status(4)]}
    neighbors[kind].insert(1, item)
    body = webhook_body("1", **neighbors)
    assert await ingest(stack, body) == {"messages": 2, "statuses": 2, "rejected": 1}
    [found] = await failures(stack)
    assert (found.salon_id, found.kind) == (SALON, MESSAGE if kind == "messages" else STATUS)
    assert found.reason.startswith(reason)
    assert json.loads(found.raw_json) == reader(item)
    assert found.create_time.seconds > 1_700_000_000
    assert await ingest(stack, body) == {"duplicates": 5}
    assert await failures(stack) == [found]


async def test_items_of_unknown_kinds_are_stored(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    error = {"code": 130429, "title": "Rate limit hit"}
    bodies = [
        (webhook_body("1", statuses=[status(1, status="pondered")]), STATUS, "status: 'pondered' is not known"),
        (webhook_body("1", errors=[error]), OTHER, "errors: WhatsApp reports an error"),
        (webhook_body("1", pigeons=[{"id": "1"}]), OTHER, "field: 'messages' is not known"),
    ]
    for body, kind, reason in bodies:
        assert await ingest(stack, body) == {"unknown": 1}
        newest = (await failures(stack))[0]
        assert (newest.kind, newest.reason) == (kind, reason)
        assert await ingest(stack, body) == {"duplicates": 1}
    assert len(await failures(stack)) == len(bodies)


async def test_items_of_an_unknown_salon_are_stored_and_reported(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    kinds = {"messages": [text(0), None], "statuses": [status(0), status(1, status="played")], "errors": [{"code": 1}]}
    parts = [
        webhook_body("404", **kinds),
        webhook_body("1", messages=[text(1)]),
        webhook_body("303", messages=[text(2)]),
    ]
    parts.append(webhook_body("no id", messages=[text(3)]))
    body = json.dumps({"entry": [entry for part in parts for entry in json.loads(part)["entry"]]}).encode()
    for recorded in ({"messages": 1}, {"duplicates": 1}):  # a repeat gets the same reply and is stored once
        reply = await stack.messaging.IngestWebhook(signed(body))
        assert list(reply.unknown_phone_number_ids) == ["303", "404"]
        assert {field.name: count for field, count in reply.ListFields()[:-1]} == {
            "rejected": 6,
            "unknown": 1,
            **recorded,
        }
    asked = pb.ListWebhookFailuresRequest(page_size=3)
    kept = [found for found in await walk(stack.messaging.ListWebhookFailures, asked, 3)]
    assert {found.salon_id for found in kept} == {""}
    assert sorted((found.phone_number_id, found.kind) for found in kept) == sorted(
        [*(("404", kind) for kind in (MESSAGE, MESSAGE, STATUS, STATUS, OTHER)), ("303", MESSAGE), ("", MESSAGE)]
    )
    [other] = [found for found in kept if found.phone_number_id == "303"]
    assert (other.reason, json.loads(other.raw_json)) == ("phone_number_id: belongs to no salon", text(2))
    assert await failures(stack) == []


async def test_the_same_item_of_two_unknown_numbers_is_stored_for_each(stack: Stack) -> None:
    for name in ("404", "405"):
        assert await ingest(stack, webhook_body(name, errors=[{"code": 1}])) == {"unknown": 1}
    kept = (await stack.messaging.ListWebhookFailures(pb.ListWebhookFailuresRequest())).webhook_failures
    assert sorted(found.phone_number_id for found in kept) == ["404", "405"]


async def test_a_large_item_is_truncated(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await ingest(stack, webhook_body("1", messages=[text(0, id=None, text={"body": "x" * 100_000})]))
    [found] = await failures(stack)
    assert len(found.raw_json) == 65_536


def nested(depth: int) -> str:
    """Return JSON that is nested `depth` levels deep."""
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [64, 65, 990, 100_000])
@pytest.mark.parametrize("name", ["text", "more"])
async def test_an_item_nested_too_deeply_does_not_lose_its_neighbors(stack: Stack, name: str, depth: int) -> None:
    """An item itself is an object, so values nested 63 deep in it are allowed."""
    await salon(stack, phone_number_id="1")
    deep = json.dumps(text(1, **{name: "HERE"})).replace('"HERE"', nested(depth - 1))
    items = {"messages": [text(2), "ITEM", text(3)], "statuses": [status(4), "STATUS"]}
    body = webhook_body("1", **items).replace(b'"ITEM"', deep.encode())
    body = body.replace(b'"STATUS"', json.dumps(status(5, x="HERE")).replace('"HERE"', nested(depth - 1)).encode())
    counted = await ingest(stack, body)
    found = {item.kind: item for item in await failures(stack)}
    if depth == 64:
        assert counted == {"messages": 3, "statuses": 2}
        return
    assert counted == {"messages": 2, "statuses": 1, "rejected": 2}
    assert {item.reason for item in found.values()} == {"is nested too deeply"}
    assert found[MESSAGE].raw_json == deep[:65_536]


@pytest.mark.parametrize("place", ["entry", "change", "value", "contact", "metadata"])
async def test_deep_nesting_outside_of_items_affects_no_item(stack: Stack, place: str) -> None:
    await salon(stack, phone_number_id="1")
    whole = json.loads(webhook_body("1", messages=[text(1)], contacts=[{"wa_id": "1"}]))
    more: dict[str, Any] = whole["entry"][0]
    if place != "entry":
        more = more["changes"][0]
    if place in ("value", "contact", "metadata"):
        more = more["value"]
    if place == "contact":
        more = more["contacts"][0]
    if place == "metadata":
        more = more["metadata"]
    more["odd"] = "HERE"
    whole["entry"] += json.loads(webhook_body("1", messages=[text(2)]))["entry"]
    counted = await ingest(stack, json.dumps(whole).replace('"HERE"', nested(990)).encode())
    assert counted == ({"messages": 1, "rejected": 1} if place == "metadata" else {"messages": 2})


async def test_failures_are_listed_newest_first_in_pages_of_their_salon(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await salon(stack, "salon-2", phone_number_id="2")
    await ingest(stack, webhook_body("2", messages=[7]))
    for number in range(3):
        await ingest(stack, webhook_body("1", messages=[number, f"{number}"], statuses=[number]))
    found = await failures(stack)
    assert sorted(item.raw_json for item in found) == sorted(f for n in "012" for f in (n, f'"{n}"', n))
    times = [(item.create_time.ToNanoseconds(), item.webhook_failure_id) for item in found]
    assert times == sorted(times, reverse=True)
    for size in (1, 2, 4, 9):
        assert await failures(stack, size) == found
    token = pb.ListWebhookFailuresRequest(salon_id=SALON, page_size=1)
    token.page_token = (await stack.messaging.ListWebhookFailures(token)).next_page_token
    token.salon_id = "salon-2"
    assert (await failure(stack.messaging.ListWebhookFailures(token))).fields == ["page_token"]
    unknown = await stack.messaging.ListWebhookFailures(pb.ListWebhookFailuresRequest(salon_id="nobody"))
    assert list(unknown.webhook_failures) == []


async def test_an_unknown_message_is_not_found(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await salon(stack, "salon-2", phone_number_id="2")
    await ingest(stack, webhook_body("1", messages=[text(1), text(2)], statuses=[status(1), status(9)]))
    one = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id="wamid.1"))
    both = pb.GetMessageRequest(salon_id=SALON, message_id=one.message_id.upper(), whatsapp_id="wamid.1")
    assert await stack.messaging.GetMessage(both) == one
    assert [event.status for event in one.status_events] == [pb.MESSAGE_STATUS_READ]
    missing = [
        pb.GetMessageRequest(salon_id="salon-2", whatsapp_id="wamid.1"),
        pb.GetMessageRequest(salon_id="salon-2", message_id=one.message_id),
        pb.GetMessageRequest(salon_id=SALON, message_id=one.message_id, whatsapp_id="wamid.2"),
        pb.GetMessageRequest(salon_id=SALON, whatsapp_id="wamid.9"),
    ]
    for request in missing:
        error = await failure(stack.messaging.GetMessage(request))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MESSAGE_NOT_FOUND")


async def test_failures_raw_items_and_events_are_read_with_their_indexes(
    stack: Stack, recorded: Sequence[Statement]
) -> None:
    """The test makes the rows, because the sample data has none."""
    await salon(stack, phone_number_id="1")
    items = [text(number) for number in range(500)]
    await ingest(stack, webhook_body("1", messages=items, statuses=[status(number) for number in range(500)]))
    more = """
        INSERT INTO webhook_failures (salon_id, digest, kind, reason, item, created_at)
        SELECT 'salon-' || n % 9, n::text::bytea, 'OTHER', '-', repeat('x', 100), now() - n * interval '1 s'
        FROM generate_series(1, 9000) AS n"""
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute(more)
        conn.execute("ANALYZE messages, raw_messages, message_status_events, webhook_failures")
    users = {
        "MessagingService.ListWebhookFailures": {"idx_webhook_failures_salon_created"},
        "MessagingService.GetMessage": {"raw_messages_pkey", "message_status_events_pkey"},
    }
    with psycopg.connect(stack.database_url) as conn:
        for rpc, indexes in users.items():
            plans = check_plans(conn, [statement for statement in recorded if rpc in statement.rpcs])
            assert len(plans) >= 2
            for plan in plans:
                assert plan.ok and indexes <= set(plan.indexes), plan


async def test_a_number_with_too_many_digits_does_not_lose_its_neighbors(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    body = webhook_body("1", messages=[text(1, odd="ODD"), text(2, id="ODD"), text(3)])
    digits = "9" * 5000
    assert await ingest(stack, body.replace(b'"ODD"', digits.encode())) == {"messages": 2, "rejected": 1}
    found = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id="wamid.1"))
    assert json.loads(found.raw_json)["odd"] == digits
