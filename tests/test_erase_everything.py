"""After EraseCustomer nothing of a customer is left of any kind of event, and nothing comes back with late ones."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from parlor.messaging.v1 import messaging_pb2 as pb
from tests import kinds
from tests.stack import SALON, Fields, Stack, failure, message_request, rows, salon, warm, webhook_body
from tests.test_erase_customer import erase
from tests.test_erase_failures import wamid
from tests.test_webhook import ingest, status, text
from tests.whatsapp import BODIES, PHONE_NUMBER_ID
from tests.whatsapp_fields import UNPLACED

PHONE, USER, OTHER = "+4917698765432", "DE.55443322110099", "+4915100000002"
WORD, DEGREES = "quincanary", 47.1234567
# What the keys of JSON have that is not a text of the customer: names of kinds, times, the salon's own numbers.
KINDS = set(
    "object field messaging_product type status timestamp phone_number_id display_phone_number event direction"
    " category pricing_model value action currency mime_type sha256 recipient_type start_time end_time"
    " expiration_timestamp".split()
)
OF_NOBODY = UNPLACED.keys() - {"group_participants", "automatic_events"}  # name no customer
# What is said of a customer has no ID: said again, it makes a new customer.
FACTS = {"user_preferences", "user_preferences_resume", "smb_app_state_sync"}
NAMES = sorted(path.stem for path in BODIES.glob("*.json") if path.stem not in OF_NOBODY)


def wamid_of(name: str) -> str:
    """Return the id of a message as WhatsApp makes it: with the customer's number, and different for each name."""
    return wamid(PHONE, b"\x1c\x18") + hashlib.sha256(name.encode()).hexdigest()[:20].upper()


def planted(value: Any, key: str = "") -> Any:
    """Return JSON of a webhook body with the customer in each of its fields."""
    if isinstance(value, dict):
        return {name: planted(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [planted(each, key) for each in value]
    if key in ("latitude", "longitude"):
        return DEGREES
    if not isinstance(value, str) or key in KINDS:
        return value
    if value.startswith("wamid."):
        return wamid_of(value)
    if re.fullmatch("[1-9][0-9]{6,14}", value) and key != "group_id":
        return PHONE[1:]
    if re.fullmatch(r"[A-Z]{2}\.[A-Za-z0-9]+", value):
        return USER
    return value if key == "group_id" else f"{value} {WORD}"


def body(name: str) -> bytes:
    """Return a body of the corpus with the customer in each of its fields."""
    return json.dumps(planted(json.loads((BODIES / f"{name}.json").read_text()))).encode()


def history() -> list[bytes]:
    """Return bodies of the history, in both directions, with the customer in each field."""
    mine: Fields = {"from": PHONE[1:], "from_user_id": USER, "text": {"body": WORD}}
    picture: Fields = {"from": PHONE[1:], "type": "image", "image": {"id": WORD, "caption": WORD}}
    sent = kinds.past("1", 1, sent=True) | {"id": wamid_of("past 1"), "to": PHONE[1:], "text": {"body": WORD}}
    got = kinds.past("2", 2) | {"id": wamid_of("past 2"), **mine}
    late = kinds.past("2", 2) | {"id": wamid_of("past 2"), **picture}
    return [
        kinds.history(PHONE_NUMBER_ID, sent, got, person=PHONE[1:]),
        kinds.body(PHONE_NUMBER_ID, "history", messages=[late]),
    ]


def wamids(*bodies: bytes) -> list[str]:
    """Return all ids of messages in bodies."""
    return sorted({found for payload in bodies for found in re.findall(r'"(wamid\.[^"]+)"', payload.decode())})


def secrets(ids: list[str]) -> list[str]:
    """Return what must not be left."""
    return [PHONE[1:], PHONE[3:], USER, WORD, str(DEGREES), *ids]


def stored(database_url: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each row of each table; bytes also as text."""
    with psycopg.connect(database_url) as conn:
        tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            for (row,) in conn.execute(f"SELECT t::text FROM {table} AS t").fetchall():
                found = re.findall(r"\\x([0-9a-f]+)", row)
                yield table, row + "".join(bytes.fromhex(one).decode("latin-1") for one in found)


def left(stack: Stack, redis_url: str, ids: list[str]) -> set[tuple[str, str]]:
    """Return where something is left, and what."""
    places = list(stored(stack.database_url))
    with redis.Redis.from_url(redis_url) as client:
        for key in client.keys("*"):
            places.append(("redis", f"{key!r} {(client.get(key) or b'').decode('latin-1')}"))
    return {(place, secret) for place, row in places for secret in secrets(ids) if secret in row}


async def read(stack: Stack) -> None:
    """Cache the replies that show the customer."""
    named: Fields = {"salon_id": SALON, "phone_number": PHONE}
    each: list[Fields] = [{"phone_number": PHONE}, {"user_id": USER}]
    for name in each:
        await warm(stack.messaging.GetConversation, pb.GetConversationRequest(salon_id=SALON, **name))
        await warm(stack.messaging.GetCustomer, pb.GetCustomerRequest(salon_id=SALON, **name))
    await warm(stack.messaging.ListMessages, pb.ListMessagesRequest(**named))
    await warm(stack.messaging.ListMessages, pb.ListMessagesRequest(salon_id=SALON))
    await warm(stack.messaging.ListConversations, pb.ListConversationsRequest(salon_id=SALON))
    await warm(stack.messaging.ListCustomers, pb.ListCustomersRequest(salon_id=SALON))
    await warm(stack.messaging.SearchMessages, pb.SearchMessagesRequest(salon_id=SALON, query=WORD))


async def lived(stack: Stack, bodies: list[bytes]) -> None:
    """Record the bodies, and what the salon's programs record of the customer."""
    await salon(stack, phone_number_id=PHONE_NUMBER_ID, region_code="DE")
    both: Fields = {"phone_number": PHONE, "user_id": USER, "request_id": "first"}
    first = await stack.messaging.RecordMessage(message_request(wamid_of("first"), content=WORD, **both))
    for payload in bodies:
        await ingest(stack, payload)
    sent: Fields = {"direction": 2, "phone_number": PHONE, "content": WORD, "request_id": "sent"}
    await stack.messaging.RecordMessage(message_request(wamid_of("sent"), **sent))
    opt_out: Fields = {"salon_id": SALON, "user_id": USER, "reason": WORD, "request_id": "opt-out"}
    await stack.messaging.RecordOptOut(pb.RecordOptOutRequest(**opt_out))
    tag: Fields = {"salon_id": SALON, "phone_number": PHONE, "add_tags": [WORD]}
    await stack.messaging.TagConversation(pb.TagConversationRequest(**tag))
    ai: Fields = {"salon_id": SALON, "conversation_id": first.conversation_id, "model": "m", "role": 3}
    await stack.messaging.RecordAiMessage(pb.RecordAiMessageRequest(**ai, content=f"{WORD} {PHONE}"))
    early: Fields = {"salon_id": SALON, "whatsapp_id": wamid_of("early"), "status": 4, "request_id": "early"}
    await stack.messaging.RecordMessageStatus(pb.RecordMessageStatusRequest(**early))


def late(ids: list[str]) -> Iterator[bytes]:
    """Yield bodies that come after the erasure, of messages that were erased."""
    for number, name in enumerate(ids):
        states = [status(id=name, status=state, recipient_id=PHONE[1:]) for state in ("delivered", "read", "played")]
        yield webhook_body(PHONE_NUMBER_ID, statuses=[*states, status(id=name, timestamp="never")])
        sender: Fields = {"from": PHONE[1:], "from_user_id": USER, "text": None}
        changed = {"original_message_id": name, "message": {"type": "text", "text": {"body": WORD}}}
        amended: list[Fields] = [
            {"type": "edit", "edit": changed},
            {"type": "revoke", "revoke": {"original_message_id": name}},
            {"type": "reaction", "reaction": {"message_id": name, "emoji": WORD}},
        ]
        messages = [text(f"{number}.{place}", **sender | each) for place, each in enumerate(amended)]
        yield webhook_body(PHONE_NUMBER_ID, messages=messages)


async def test_nothing_is_left_of_any_kind_of_event_and_nothing_comes_back(
    stack: Stack, redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    past = history()
    bodies = [*map(body, NAMES), *past]
    await lived(stack, bodies)
    await read(stack)
    ids = sorted({*wamids(*bodies), *map(wamid_of, ("first", "sent", "early"))})
    before = left(stack, redis_url, ids)
    assert {secret for _, secret in before} == set(secrets(ids))
    assert {"redis", "messages", "raw_messages", "webhook_failures", "messaging_requests", "customers"} <= {
        place for place, _ in before
    }
    assert (await erase(stack, phone_number=PHONE)).conversations == 1
    assert left(stack, redis_url, ids) == set()
    conversations = rows(stack.database_url, "SELECT count(*) FROM conversations")
    again = [body(name) for name in NAMES if name not in FACTS]
    for payload in (*late(ids), *again, *past):
        await ingest(stack, payload)
    assert left(stack, redis_url, ids) == set()
    assert rows(stack.database_url, "SELECT count(*) FROM conversations") == conversations
    assert rows(stack.database_url, "SELECT count(*) FROM customers") == [(0,)]
    shown = "".join(capfd.readouterr())
    assert [secret for secret in secrets(ids) if secret in shown] == []


async def test_what_is_recorded_of_an_erased_message_is_refused(stack: Stack) -> None:
    await salon(stack)
    request = message_request(wamid_of("1"), phone_number=PHONE)
    await stack.messaging.RecordMessage(request)
    await erase(stack, phone_number=PHONE)
    read = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id=wamid_of("1"), status=pb.MESSAGE_STATUS_READ)
    assert (await failure(stack.messaging.RecordMessage(request))).reason == "CUSTOMER_ERASED"
    assert (await failure(stack.messaging.RecordMessageStatus(read))).reason == "CUSTOMER_ERASED"
    request.user_id = USER
    assert (await failure(stack.messaging.RecordMessage(request))).reason == "CUSTOMER_ERASED"
    assert rows(stack.database_url, "SELECT count(*) FROM customers") == [(0,)]
    request.salon_id = "salon-2"
    await salon(stack, "salon-2")
    assert (await stack.messaging.RecordMessage(request)).whatsapp_id == wamid_of("1")


async def test_the_status_of_a_send_that_ended_after_the_erasure_is_not_recorded(stack: Stack) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(message_request("wamid.0", phone_number=PHONE))
    sent = message_request("", phone_number=PHONE, direction=2)
    message = await stack.messaging.RecordMessage(sent)
    await erase(stack, phone_number=PHONE)
    accepted: Fields = {"salon_id": SALON, "message_id": message.message_id, "whatsapp_id": wamid_of("1")}
    sending = stack.messaging.RecordMessageSent(pb.RecordMessageSentRequest(**accepted))
    assert (await failure(sending)).reason == "CUSTOMER_ERASED"
    read = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id=wamid_of("1"), status=pb.MESSAGE_STATUS_READ)
    assert (await failure(stack.messaging.RecordMessageStatus(read))).reason == "CUSTOMER_ERASED"
    assert rows(stack.database_url, "SELECT count(*) FROM message_status_events") == [(0,)]


async def test_hashes_are_salted_by_salon(stack: Stack) -> None:
    for name in ("salon-1", "salon-2"):
        await salon(stack, name)
        await stack.messaging.RecordMessage(message_request("wamid.1", salon_id=name))
        await erase(stack, salon_id=name, phone_number="+4915112345678")
    hashes = {bytes(found) for (found,) in rows(stack.database_url, "SELECT hash FROM erased_whatsapp_ids")}
    assert len(hashes) == 2
    assert hashlib.sha256(b"wamid.1").digest() not in hashes


async def test_what_others_wrote_stays(stack: Stack) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    await stack.messaging.RecordMessage(message_request(wamid_of("1"), phone_number=PHONE))
    await stack.messaging.RecordMessage(message_request("wamid.other", phone_number=OTHER, content="mine"))
    await erase(stack, phone_number=PHONE)
    found = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=SALON, phone_number=OTHER))
    assert [message.content for message in found.messages] == ["mine"]
    again = message_request(wamid_of("2"), phone_number=PHONE, reply_to_whatsapp_id=wamid_of("1"))
    assert (await stack.messaging.RecordMessage(again)).whatsapp_id == wamid_of("2")


async def test_nothing_is_left_in_groups(stack: Stack, redis_url: str) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    group: Fields = {"group_id": "group-1"}
    mine: Fields = {**group, "from": PHONE[1:], "from_user_id": USER}
    others: Fields = {**group, "from": OTHER[1:]}
    quote = {"context": {"from": PHONE[1:], "id": wamid_of("mine")}}
    reaction: Fields = {"type": "reaction", "text": None}
    messages = [
        text("1", **mine | {"id": wamid_of("mine"), "text": {"body": WORD}}),
        text("2", **others | quote),
        text("3", **mine | reaction | {"id": wamid_of("liked"), "reaction": {"message_id": "wamid.2", "emoji": WORD}}),
        text("4", **others | reaction | {"reaction": {"message_id": "wamid.2", "emoji": "+"}}),
        text("5", **mine | reaction | {"id": wamid_of("early"), "reaction": {"message_id": "wamid.9", "emoji": WORD}}),
    ]
    contacts = [{"profile": {"name": WORD}, "wa_id": PHONE[1:], "user_id": USER}]
    await ingest(stack, webhook_body(PHONE_NUMBER_ID, messages=messages, contacts=contacts))
    listed = pb.ListMessagesRequest(salon_id=SALON)
    found = (await stack.messaging.ListMessages(listed)).messages[0]
    request = pb.ListMessagesRequest(salon_id=SALON, conversation_id=found.conversation_id)
    await warm(stack.messaging.ListMessages, listed)
    await warm(stack.messaging.ListMessages, request)
    of_group: Fields = {"salon_id": SALON, "conversation_id": found.conversation_id}
    ai_message = pb.RecordAiMessageRequest(**of_group, model="m", role=pb.AI_ROLE_USER, content=WORD)
    assert (await stack.messaging.RecordAiMessage(ai_message)).content == WORD
    ids = [wamid_of("mine"), wamid_of("liked"), wamid_of("early")]
    assert {place for place, _ in left(stack, redis_url, ids)} >= {"messages", "message_amendments", "redis"}
    await erase(stack, phone_number=PHONE, user_id=USER)
    assert left(stack, redis_url, ids) == set()
    for one in (listed, request):
        shown = (await stack.messaging.ListMessages(one)).messages
        assert [(message.content, [like.emoji for like in message.reactions]) for message in shown] == [
            ("hi", ["+"]),
            ("", []),
        ]
    await ingest(stack, webhook_body(PHONE_NUMBER_ID, messages=messages, contacts=contacts))
    assert left(stack, redis_url, ids) == set()
