"""messaging.EraseCustomer: webhook items that could not be recorded and name the customer are deleted."""

import base64
import json
from typing import Any
from uuid import uuid4

import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import PHONE, SALON, Fields, Stack, message_request, rows, salon, webhook_body
from tests.test_erase_customer import USER, erase
from tests.test_webhook import ingest, status, text

OTHER = "+4915112345679"
NAME = "Zoe Hartmann"


def wamid(phone: str, before: bytes = b"\x1c\x18") -> str:
    """Return a message ID as WhatsApp makes it, which contains the customer's number, or user_id."""
    digits = phone.removeprefix("+").encode()
    encoded = base64.b64encode(before + bytes([len(digits)]) + digits + b"\x15\x02\x00\x12\x18\x143A4A")
    return f"wamid.{encoded.decode()}"


def sent_by(sender: Any, **fields: Any) -> dict[str, Any]:
    """Return a text message that can't be recorded."""
    values: dict[str, Any] = {"id": None, "from": sender, **fields}
    return text(**values)


def contact(phone: str) -> dict[str, Any]:
    """Return the `contacts` of a body."""
    return {"profile": {"name": NAME}, "wa_id": phone.removeprefix("+")}


WRITINGS = {
    "blanks": "+49 151 1234 5678",
    "hyphens": "49-151-1234-5678",
    "national": "0151 12345678",
    "national in brackets": "(0151) 123 456 78",
    "both": "+49 (0)151/12345678",
    "abroad": "004915112345678",
    "link": "tel:+49-151-1234-5678",
    "no-break blanks": "49\u00a0151\u202f1234\u20115678",
    "full width": "\uff14\uff19\uff11\uff15\uff11\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18",
    "arabic": "\u0664\u0669\u0661\u0665\u0661\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668",
    "without country": "15112345678",
    "lines": "49\n151\t12345678",
}
PLACES = {
    "sender": lambda number: sent_by(number),
    "in a text": lambda number: sent_by("1", text={"body": f"call me at {number}, please"}),
    "nested": lambda number: sent_by("1", context={"by": [{"from": number}]}),
}


def failed(stack: Stack) -> Any:
    """Return the number of failures."""
    return rows(stack.database_url, "SELECT count(*) FROM webhook_failures")[0][0]


@pytest.mark.parametrize("place", PLACES)
async def test_a_number_is_found_in_any_notation(stack: Stack, place: str) -> None:
    await salon(stack, phone_number_id="1")
    items = [PLACES[place](writing) for writing in WRITINGS.values()]
    assert await ingest(stack, webhook_body("1", messages=items)) == {"rejected": len(items)}
    await erase(stack, phone_number=PHONE)
    assert rows(stack.database_url, "SELECT item FROM webhook_failures") == []


@pytest.mark.parametrize("codec", ["backslashreplace", "json"])
async def test_a_number_is_found_in_an_item_that_is_not_json(stack: Stack, codec: str) -> None:
    await salon(stack)
    for number, writing in enumerate(WRITINGS.values()):
        raw = writing.encode().decode("ascii", "backslashreplace") if codec != "json" else json.dumps(writing).upper()
        item = f'{{"from": "{raw}", [[['.replace("\\U", "\\u")
        columns = "INSERT INTO webhook_failures (salon_id, digest, kind, reason, item)"
        query = f"{columns} VALUES ('{SALON}', '{number}', 'OTHER', '', '{item}') RETURNING 1"
        rows(stack.database_url, query)
    await erase(stack, phone_number=PHONE)
    assert rows(stack.database_url, "SELECT item FROM webhook_failures") == []


async def test_an_item_without_a_number_is_erased_with_its_sender(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    lone = sent_by(None)
    assert await ingest(stack, webhook_body("1", contacts=[contact(PHONE)], messages=[lone])) == {"rejected": 1}
    only_id = sent_by(None, id=wamid(PHONE), timestamp="?")
    assert await ingest(stack, webhook_body("1", messages=[only_id])) == {"rejected": 1}
    assert await ingest(stack, webhook_body("1", statuses=[status(id=wamid(PHONE), timestamp="?")])) == {"rejected": 1}
    large = sent_by(None, text={"body": "x" * 70_000})
    assert await ingest(stack, webhook_body("1", contacts=[contact(PHONE)], messages=[large])) == {"rejected": 1}
    await erase(stack, phone_number=PHONE)
    assert failed(stack) == 0


async def test_an_item_with_only_the_user_id_is_erased(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await stack.messaging.RecordMessage(message_request(user_id=USER))
    nested = sent_by(None, from_user_id="DE.9", context={"by": [{"user_id": USER}]})
    items = [sent_by(None, from_user_id=USER), sent_by(USER), nested]
    assert await ingest(stack, webhook_body("1", messages=items)) == {"rejected": 3}
    lone = sent_by(None)
    known = {"profile": {"name": NAME}, "user_id": USER}
    assert await ingest(stack, webhook_body("1", contacts=[known], messages=[lone])) == {"rejected": 1}
    await erase(stack, phone_number=PHONE)
    assert failed(stack) == 0


async def test_other_customers_keep_their_items(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    senders = [OTHER[1:], "+49 151 1234 5679", "0151 12345679", PHONE[1:] + "9", "1" + PHONE[1:], "16505551234"]
    items = [sent_by(sender) for sender in senders]
    items += [sent_by(None, from_user_id=f"{USER}1")]
    items += [sent_by(None, id=wamid(other), timestamp="?") for other in (OTHER, PHONE + "9")]
    assert await ingest(stack, webhook_body("1", messages=items)) == {"rejected": len(items)}
    await erase(stack, phone_number=PHONE, user_id=USER)
    assert failed(stack) == len(items)


async def test_an_early_status_is_erased_too(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    statuses = [status(id=wamid(phone)) for phone in (PHONE, OTHER, PHONE + "9")]
    assert await ingest(stack, webhook_body("1", statuses=statuses)) == {"statuses": 3}
    fields: Fields = {"salon_id": SALON, "whatsapp_id": wamid(PHONE), "status": 2, "request_id": str(uuid4())}
    request = pb.RecordMessageStatusRequest(**fields)
    await stack.messaging.RecordMessageStatus(request)
    await erase(stack, phone_number=PHONE)
    left = {name for (name,) in rows(stack.database_url, "SELECT whatsapp_id FROM message_status_events")}
    assert left == {wamid(OTHER), wamid(PHONE + "9")}
    assert await stack.messaging.RecordMessageStatus(request) == pb.Message()


# Base64 has a + for the length 62, 126 or 190.
@pytest.mark.parametrize("length", [4, 13, *range(60, 67), *range(124, 131), 135])
async def test_a_user_id_of_any_length_is_found_in_message_ids(stack: Stack, length: int) -> None:
    await salon(stack, phone_number_id="1")
    user, other = (f"DE.{letter * (length - 3)}" for letter in "az")
    befores = (b"\x1c", b"\x1c\x18", b"\x1c\x18\x19")
    statuses = [status(id=wamid(name, before)) for name in (user, other) for before in befores]
    assert await ingest(stack, webhook_body("1", statuses=statuses)) == {"statuses": 6}
    await stack.messaging.RecordMessage(message_request(phone_number="", user_id=user))
    await erase(stack, user_id=user)
    left = {name for (name,) in rows(stack.database_url, "SELECT whatsapp_id FROM message_status_events")}
    assert left == {wamid(other, before) for before in befores}
