"""Webhook bodies of the WhatsApp Cloud API: those of Meta's documentation, and malformed ones."""

import asyncio
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from pydantic import SecretStr

from libs.server import RpcError
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.settings import MessagingSettings
from services.messaging.webhook.parse import check_signature
from tests.stack import SALON, SECRET, Failure, Stack, failure, message_request, rows, salon, webhook_body

BODIES = Path(__file__).parent / "data" / "whatsapp"
PHONE_NUMBER_ID = "106540352242922"
CUSTOMER = "+16505551234"
OUTBOUND = "wamid.HBgLMTY1MDM4Nzk0MzkVAgARGBJCQjg3OTZEOTI5MTRDNTRFNkYA"


def signed(payload: bytes, secret: str = SECRET) -> pb.IngestWebhookRequest:
    """Return the request of a body, signed as by WhatsApp."""
    signature = "sha256=" + hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest()
    return pb.IngestWebhookRequest(payload=payload, signature=signature)


async def ingest(stack: Stack, payload: bytes) -> dict[str, int]:
    """Ingest a body and return the counts that are not 0."""
    reply = await stack.messaging.IngestWebhook(signed(payload))
    return {field.name: count for field, count in reply.ListFields() if field.name != "unknown_phone_number_ids"}


async def refused(stack: Stack, payload: bytes) -> Failure:
    """Return the error of a body that must be refused."""
    return await failure(stack.messaging.IngestWebhook(signed(payload)))


def text(number: int | str = 1, **fields: Any) -> dict[str, Any]:
    """Return an inbound text message without the fields that are None."""
    values: dict[str, Any] = {"from": "16505551234", "id": f"wamid.{number}", "timestamp": "1749416383", "type": "text"}
    values |= {"text": {"body": "hi"}, **fields}
    return {name: value for name, value in values.items() if value is not None}


def status(number: int = 1, **fields: Any) -> dict[str, Any]:
    """Return a status without the fields that are None."""
    values = {"id": f"wamid.{number}", "status": "read", "timestamp": "1749416383", **fields}
    return {name: value for name, value in values.items() if value is not None}


def written(stack: Stack) -> Any:
    """Return the number of conversations, messages and statuses."""
    tables = ("conversations", "messages", "message_status_events")
    return tuple(rows(stack.database_url, f"SELECT count(*) FROM {table}")[0][0] for table in tables)


async def test_documented_bodies_are_recorded_in_their_conversation(stack: Stack) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    assert await ingest(stack, (BODIES / "text.json").read_bytes()) == {"messages": 1}
    answer = message_request(OUTBOUND, phone_number=CUSTOMER, direction="MESSAGE_DIRECTION_OUTBOUND", content="Yes")
    answer.send_time.FromSeconds(1749416390)
    await stack.messaging.RecordMessage(answer)
    wanted = pb.GetConversationRequest(salon_id=SALON, phone_number=CUSTOMER)
    for name in ("sent", "delivered", "read"):
        assert await ingest(stack, (BODIES / f"{name}.json").read_bytes()) == {"statuses": 1}
        conversation = await stack.messaging.GetConversation(wanted)
        sent, received = conversation.messages
        assert sent.status == pb.MessageStatus.Value(f"MESSAGE_STATUS_{name.upper()}")
    assert received.content == "Do you have a slot on Friday? 💇"
    assert received.whatsapp_id == "wamid.HBgLMTY1MDM4Nzk0MzkVAgASGBQzQTRBNjU5OUFFRTAzODEwMTQ0RgA="
    assert (received.direction, received.status) == (pb.MESSAGE_DIRECTION_INBOUND, pb.MESSAGE_STATUS_RECEIVED)
    assert (received.phone_number, received.create_time.seconds) == (CUSTOMER, 1749416383)


async def test_a_wrong_signature_is_refused(stack: Stack) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    payload = (BODIES / "text.json").read_bytes()
    right = signed(payload)
    wrong = [
        signed(payload, "other"),
        pb.IngestWebhookRequest(payload=payload),
        pb.IngestWebhookRequest(payload=payload, signature="sha256="),
        pb.IngestWebhookRequest(payload=payload, signature="ä" * 71),
        pb.IngestWebhookRequest(payload=payload, signature=right.signature.removeprefix("sha256=")),
        pb.IngestWebhookRequest(payload=payload + b"\n", signature=right.signature),
    ]
    for request in wrong:
        error = await failure(stack.messaging.IngestWebhook(request))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_SIGNATURE")
    assert written(stack) == (0, 0, 0)


async def test_the_same_body_again_writes_nothing(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    body = webhook_body("1", messages=[text(1), text(2)], statuses=[status(8), status(9)])
    replies = await asyncio.gather(*(ingest(stack, body) for _ in range(4)))
    assert sum(reply.get("messages", 0) for reply in replies) == 2
    assert sum(reply.get("statuses", 0) for reply in replies) == 2
    assert await ingest(stack, body) == {"duplicates": 4}
    assert written(stack) == (1, 2, 2)


async def test_a_repeat_within_a_body_is_a_duplicate(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    body = webhook_body("1", messages=[text(1), text(1)], statuses=[status(9), status(9)])
    assert await ingest(stack, body) == {"messages": 1, "statuses": 1, "duplicates": 2}


async def test_an_unknown_phone_number_id_is_counted_as_rejected(stack: Stack) -> None:
    for phone_number_id in ("404", "", "no id", "1" * 65, "\ud800", "\0"):
        body = webhook_body(phone_number_id, messages=[text()], statuses=[status()])
        assert await ingest(stack, body) == {"rejected": 2}
    assert written(stack) == (0, 0, 0)


async def test_several_entries_and_changes_reach_their_salons(stack: Stack) -> None:
    for name in ("salon-1", "salon-2"):
        await salon(stack, name, phone_number_id=name)
    parts = [
        webhook_body("salon-1", messages=[text(1)]),
        webhook_body("salon-2", messages=[text(1)], statuses=[status(2)]),
        webhook_body("404", messages=[text(1)]),
        webhook_body("salon-1", messages=[text(3), text(4, **{"from": "4915112345678"})]),
    ]
    entries = [entry for part in parts for entry in json.loads(part)["entry"]]
    entries[0]["changes"] += entries.pop()["changes"]
    body = json.dumps({"object": "whatsapp_business_account", "entry": entries}).encode()
    assert await ingest(stack, body) == {"messages": 4, "statuses": 1, "rejected": 1}
    assert rows(stack.database_url, "SELECT salon_id, count(*) FROM messages GROUP BY 1 ORDER BY 1") == [
        ("salon-1", 3),
        ("salon-2", 1),
    ]


async def test_unknown_kinds_are_counted(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    kinds = {"messages": [text(1, type="hologram"), text(2)], "statuses": [status(3, status="pondered"), status(4)]}
    assert await ingest(stack, webhook_body("1", **kinds)) == {"messages": 1, "statuses": 1, "unknown": 2}
    assert await ingest(stack, webhook_body("1", pigeons=[{"id": "1"}])) == {"unknown": 1}
    assert await ingest(stack, (BODIES / "template_status.json").read_bytes()) == {"unknown": 1}


async def test_anything_but_a_webhook_body_is_refused(stack: Stack) -> None:
    wrong = [b"\xff", b"{", b"[]", b"null", b'"entry"', b"{}", b'{"entry": {}}', b'{"entry": [], "entry": 1}']
    wrong += [b"[" * 100_000, b'{"entry": [' * 100_000, b'{"entry": ' + b"9" * 5_000 + b"}"]
    for payload in wrong:
        error = await refused(stack, payload)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert error.fields == ["payload"]


async def test_misplaced_values_are_counted_as_rejected(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    value: dict[str, Any] = {"metadata": {"phone_number_id": "1"}}
    wrong: list[tuple[list[Any], int]] = [
        ([], 0),
        ([1, None, "x", []], 4),
        ([{}, {"changes": 1}, {"changes": {}}], 2),
        ([{"changes": [1, {}, {"value": 1}, {"value": []}]}], 4),
        ([{"changes": [{"value": {**value, "messages": 1, "statuses": {}}}]}], 2),
        ([{"changes": [{"value": {"metadata": 1, "messages": [text()]}}]}], 1),
        ([{"changes": [{"value": {"messages": [text()]}}]}], 1),
    ]
    for entries, rejected in wrong:
        counted = await ingest(stack, json.dumps({"entry": entries}).encode())
        assert counted == ({"rejected": rejected} if rejected else {})
    assert written(stack) == (0, 0, 0)


HOSTILE: list[Any] = ["", " ", "\0", "\ud800", "x" * 1_000_000, 0, -1, 2**64, 1e400, 1.5, True, [], {}, [[]], {"a": 1}]
NO_TIMES: list[Any] = ["-1", "x", "9" * 5_000, -1, 1e400, 1.5, True, False, [], {}]
NO_TEXTS: list[Any] = ["x" * 65_537, 7, True, [1], {"a": 1}]


async def test_an_unreadable_item_does_not_lose_its_neighbors(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    bad_messages = [text(0, **{name: None}) for name in ("from", "id", "timestamp", "type")]
    bad_messages += [text(0, **{name: value}) for name in ("from", "id", "type") for value in HOSTILE[2:]]
    bad_messages += [text(0, timestamp=value) for value in NO_TIMES]
    bad_messages += [text(0, text={"body": value}) for value in NO_TEXTS]
    bad_statuses = [status(0, **{name: None}) for name in ("id", "timestamp", "status")]
    bad_statuses += [status(0, **{name: value}) for name in ("id", "status") for value in HOSTILE[2:]]
    bad: list[list[Any]] = [[*items, None, 1, "x", [], {}] for items in (bad_messages, bad_statuses)]
    body = webhook_body("1", messages=[text(1), *bad[0], text(2)], statuses=[status(3), *bad[1], status(4)])
    counted = await ingest(stack, body)
    assert counted == {"messages": 2, "statuses": 2, "rejected": len(bad[0]) + len(bad[1])}
    assert written(stack) == (1, 2, 2)


async def test_texts_are_stored_unchanged(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    texts = ["", "'; DROP TABLE messages; --", "💇" * 1000, "\u202e\u0007\ufeff", "x" * 65_536]
    messages = [text(number, text={"body": body}) for number, body in enumerate(texts)]
    await ingest(stack, webhook_body("1", messages=messages))
    wanted = pb.GetConversationRequest(salon_id=SALON, phone_number=CUSTOMER)
    found = {
        message.whatsapp_id: message.content for message in (await stack.messaging.GetConversation(wanted)).messages
    }
    assert found == {f"wamid.{number}": body for number, body in enumerate(texts)}


async def test_a_large_body_is_recorded_completely(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    first = webhook_body("1", messages=[text(f"first.{number}", text=None) for number in range(1000)])
    assert await ingest(stack, first) == {"messages": 1000}
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute("ANALYZE")  # as autovacuum does within a minute; plans made for empty tables read the whole salon
    body = webhook_body("1", messages=[text(number, text=None) for number in range(40_000)])
    assert await ingest(stack, body) == {"messages": 40_000}
    assert written(stack) == (1, 41_000, 0)
    error = await refused(stack, b" " * (8 * 1024 * 1024 + 1))
    assert error.fields == ["payload"]


def test_a_body_may_be_signed_with_any_secret_of_a_rotation() -> None:
    settings = MessagingSettings(whatsapp_app_secret=SecretStr(" new-secret,old-secret , "))
    assert settings.app_secrets == ["new-secret", "old-secret"]
    payload = webhook_body("1")
    for secret in ("new-secret", "old-secret"):
        assert list(check_signature(payload, signed(payload, secret).signature, settings.app_secrets))
    for secret in ("third-secret", "new-secret,old-secret", ""):
        with pytest.raises(RpcError, match="signature"):
            list(check_signature(payload, signed(payload, secret).signature, settings.app_secrets))


@pytest.mark.parametrize("secrets", [",", " ", ", ,"])
def test_a_list_without_a_secret_is_refused(secrets: str) -> None:
    with pytest.raises(ValueError, match="WHATSAPP_APP_SECRET has no secret"):
        MessagingSettings(whatsapp_app_secret=SecretStr(secrets))
