"""Customers with a phone number, with WhatsApp's business-scoped user ID, or with both: one conversation each."""

import asyncio
from itertools import permutations
from typing import Any

import grpc
import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import SALON, Fields, Stack, deadlocks, failure, message_request, rows, salon, webhook_body
from tests.test_webhook import ingest, text

PHONE, OTHER, USER = "+16505551234", "+16505550000", "US.13491208655302741918"
HIDDEN: Fields = {"from": None, "from_user_id": USER}
BOTH: Fields = {"from": PHONE[1:], "from_user_id": USER}
KNOWN: Fields = {"from": PHONE[1:]}


def conversations(stack: Stack) -> Any:
    """Return phone number, user ID and unread_count of each conversation."""
    return rows(stack.database_url, "SELECT phone_number, user_id, unread_count FROM conversations ORDER BY 1, 2, 3")


def numbers(stack: Stack) -> Any:
    """Return the phone numbers of the messages, oldest first."""
    return [row[0] for row in rows(stack.database_url, "SELECT phone_number FROM messages ORDER BY whatsapp_id")]


async def send(stack: Stack, *senders: dict[str, Any]) -> None:
    """Ingest a text message of each sender, each in a separate body."""
    for number, sender in enumerate(senders):
        assert await ingest(stack, webhook_body("1", messages=[text(number, **sender)])) == {"messages": 1}


@pytest.mark.parametrize(
    "senders", [[HIDDEN, BOTH], [BOTH, HIDDEN], [HIDDEN, BOTH, KNOWN, HIDDEN], [BOTH, KNOWN], [KNOWN, BOTH, HIDDEN]]
)
async def test_phone_number_and_user_id_share_a_conversation_once_they_arrive_together(
    stack: Stack, senders: list[dict[str, Any]]
) -> None:
    await salon(stack, phone_number_id="1")
    await send(stack, *senders)
    assert conversations(stack) == [(PHONE, USER, len(senders))]
    assert numbers(stack) == [PHONE] * len(senders)


async def test_one_body_with_both_identities_joins_them(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    messages = [text(number, **sender) for number, sender in enumerate((HIDDEN, BOTH, KNOWN, HIDDEN))]
    assert await ingest(stack, webhook_body("1", messages=messages)) == {"messages": 4}
    assert conversations(stack) == [(PHONE, USER, 4)]


async def test_a_user_without_a_phone_number_has_one_conversation(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await salon(stack, "salon-2", phone_number_id="2")
    await send(stack, HIDDEN, HIDDEN, {"from": None, "from_user_id": "US.2"})
    await ingest(stack, webhook_body("2", messages=[text(1, **HIDDEN)]))
    assert conversations(stack) == [(None, USER, 1), (None, USER, 2), (None, "US.2", 1)]
    assert numbers(stack) == [None] * 4


async def test_a_message_with_both_joins_two_conversations(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await send(stack, KNOWN, HIDDEN, BOTH, HIDDEN)
    assert conversations(stack) == [(PHONE, USER, 4)]
    assert numbers(stack) == [PHONE] * 4


async def test_two_users_with_one_number_in_one_body_are_recorded(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    hidden = [{"from": None, "from_user_id": user} for user in (USER, "US.2")]
    await send(stack, *hidden)
    messages = [text(number, **{**sender, "from": PHONE[1:]}) for number, sender in enumerate(hidden, 10)]
    assert await ingest(stack, webhook_body("1", messages=messages)) == {"messages": 2}
    assert sum(unread for _, _, unread in conversations(stack)) == 4


async def test_a_repeated_message_assigns_no_phone_number(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await send(stack, HIDDEN)
    await ingest(stack, webhook_body("1", messages=[text(0, **BOTH)]))
    await stack.messaging.RecordMessage(message_request("wamid.0", phone_number=PHONE, user_id=USER))
    assert conversations(stack) == [(None, USER, 1)]


async def test_a_message_is_recorded_by_user_id_or_by_both(stack: Stack) -> None:
    await salon(stack)
    by_user = await stack.messaging.RecordMessage(message_request("a", phone_number="", user_id=USER))
    both = await stack.messaging.RecordMessage(message_request("b", phone_number=PHONE, user_id=USER))
    again = await stack.messaging.RecordMessage(message_request("c", phone_number="", user_id=USER))
    assert (by_user.phone_number, both.phone_number, again.phone_number) == ("", PHONE, PHONE)
    assert len({message.conversation_id for message in (by_user, both, again)}) == 1
    details: Fields = {"media_id": "77", "reply_to_whatsapp_id": "a"}
    message = await stack.messaging.RecordMessage(message_request("d", phone_number=OTHER, **details))
    assert (message.media_id, message.reply_to_whatsapp_id, message.phone_number) == ("77", "a", OTHER)
    error = await failure(stack.messaging.RecordMessage(message_request("e", phone_number="")))
    assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["phone_number"])


async def test_a_national_number_is_read_in_the_region_of_the_salon(stack: Stack) -> None:
    await salon(stack, region_code="DE")
    message = await stack.messaging.RecordMessage(message_request(phone_number="01511 2345678"))
    assert message.phone_number == "+4915112345678"
    wanted = pb.ListMessagesRequest(salon_id=SALON, phone_number="0151 12345678")
    assert list((await stack.messaging.ListMessages(wanted)).messages) == [message]


async def test_the_customer_name_is_the_newest_profile_name(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")

    async def named(number: int, second: int, profile: Any) -> None:
        message = text(number, timestamp=str(second))
        contacts = [{"profile": profile, "wa_id": "16505551234"}]
        await ingest(stack, webhook_body("1", messages=[message], contacts=contacts))

    await named(1, 2000, {"name": "New"})
    for number, profile in enumerate(({"name": "Old"}, {}, {"name": 7}, None, {"name": "\0"}), 2):
        await named(number, 1000 + number, profile)
    assert rows(stack.database_url, "SELECT customer_name FROM conversations") == [("New",)]
    await named(9, 3000, {"name": "", "username": "newest"})
    assert rows(stack.database_url, "SELECT customer_name FROM conversations") == [("newest",)]


@pytest.mark.parametrize("sender", [KNOWN, HIDDEN, BOTH])
async def test_two_concurrent_messages_of_a_new_customer_make_one_conversation(
    stack: Stack, sender: dict[str, Any]
) -> None:
    await salon(stack, phone_number_id="1")
    hundred = 100 if sender is KNOWN else 30
    for number in range(hundred):
        phone, user = f"1650555{number:04}", f"{USER}{number}"
        other = {name: {"from": phone, "from_user_id": user}[name] if value else None for name, value in sender.items()}
        bodies = [webhook_body("1", messages=[text(f"{number}.{one}", **other)]) for one in range(2)]
        fields: Fields = {
            "phone_number": f"+{phone}" if other["from"] else "",
            "user_id": user if other.get("from_user_id") else "",
        }
        recorded = stack.messaging.RecordMessage(message_request(f"wamid.{number}.2", **fields))
        await asyncio.gather(ingest(stack, bodies[0]), ingest(stack, bodies[1]), recorded)
    query = "SELECT count(*), min(unread_count), max(unread_count) FROM conversations"
    assert rows(stack.database_url, query) == [(hundred, 3, 3)]


@pytest.mark.patient
async def test_a_number_that_arrives_during_a_message_without_it_makes_one_conversation(
    stack: Stack,
) -> None:
    await salon(stack, phone_number_id="1")
    for number in range(30):
        user, phone = f"{USER}{number}", f"1650555{number:04}"
        senders: list[Fields] = [{"from": it, "from_user_id": user} for it in (None, phone)]
        bodies = [webhook_body("1", messages=[text(f"{number}.{one}", **it)]) for one, it in enumerate(senders)]
        await asyncio.gather(*(ingest(stack, body) for body in bodies))
    assert rows(stack.database_url, "SELECT count(*), count(phone_number) FROM conversations") == [(30, 30)]


async def test_customer_names_do_not_depend_on_the_order_of_delivery(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    names = [(1, "Old"), (2, "New"), (2, "Known"), (3, None)]
    for turn, order in enumerate(permutations(names)):
        phone = f"1650555{turn:04}"
        contacts = [[{"profile": {"name": name} if name else {}, "wa_id": phone}] for _, name in order]
        messages = [
            text(f"{turn}.{name}", timestamp=str(second), **{"from": phone, "from_user_id": None})
            for second, name in order
        ]
        for message, contact in zip(messages, contacts, strict=True):
            await ingest(stack, webhook_body("1", messages=[message], contacts=contact))
    assert rows(stack.database_url, "SELECT DISTINCT customer_name FROM conversations") == [("New",)]


@pytest.mark.patient
async def test_assigning_a_number_during_other_writes_does_not_deadlock(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    crowd = [{"from": f"1650444{number:04}"} for number in range(20)]
    for turn in range(12):
        user, phone = f"{USER}{turn}", f"1650555{turn:04}"
        await ingest(stack, webhook_body("1", messages=[text(f"{turn}.0", **{"from": None, "from_user_id": user})]))
        senders = ([{"from": phone}, *crowd], [{"from": phone, "from_user_id": user}, *crowd])
        bodies = [
            webhook_body(
                "1", messages=[text(f"{turn}.{body}.{number}", **sender) for number, sender in enumerate(them)]
            )
            for body, them in enumerate(senders, 1)
        ]
        counts = await asyncio.gather(*(ingest(stack, body) for body in bodies))
        assert counts == [{"messages": 21}] * 2
    assert deadlocks(stack) == 0
