"""Fields of webhook bodies besides messages and statuses: customers, identities, and what has no place."""

from typing import Any

import grpc

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.kinds import PERSON, body, call, echo, past, reaction, system
from tests.kinds import history as history_body
from tests.stack import SALON, Stack, failure, rows, salon, walk, webhook_body
from tests.test_webhook import ingest, text
from tests.whatsapp import PHONE_NUMBER_ID, payload
from tests.whatsapp_cases import ANA_ID, JOERG, SHEENA
from tests.whatsapp_fields import UNPLACED

BEGIN = 1_749_416_383


async def customer(stack: Stack, **named: str) -> pb.Customer:
    return await stack.messaging.GetCustomer(pb.GetCustomerRequest(salon_id=SALON, **named))


async def failures(stack: Stack, salon_id: str = SALON) -> list[pb.WebhookFailure]:
    return await walk(stack.messaging.ListWebhookFailures, pb.ListWebhookFailuresRequest(salon_id=salon_id), 10)


def contact(phone_number: str, second: int, name: str = "", action: str = "add", **fields: Any) -> dict[str, Any]:
    """Return an entry of the phone app's address book."""
    person = {"phone_number": phone_number} | ({"full_name": name} if name else {})
    return {"type": "contact", "contact": person, "action": action, "metadata": {"timestamp": str(second)}, **fields}


def choice(wa_id: str, second: Any, value: str = "stop", **fields: Any) -> dict[str, Any]:
    """Return a customer's choice about marketing messages."""
    preference = {"wa_id": wa_id, "category": "marketing_messages", "value": value, "timestamp": second}
    return preference | {"detail": f"User requested to {value}", **fields}


async def test_the_address_book_names_customers_and_the_newest_entry_counts(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await ingest(
        stack, webhook_body("1", messages=[text(1)], contacts=[{"wa_id": PERSON, "profile": {"name": "Shee"}}])
    )
    assert (await customer(stack, phone_number=SHEENA)).customer_name == "Shee"
    entries = [contact(PERSON, BEGIN, "Sheena (regular)"), contact("4915112345678", BEGIN, "Jörg")]
    assert await ingest(stack, body("1", "smb_app_state_sync", state_sync=entries)) == {"customers": 2}
    assert (await customer(stack, phone_number=SHEENA)).customer_name == "Sheena (regular)"
    known = await customer(stack, phone_number=JOERG)
    assert (known.customer_name, known.conversation_id) == ("Jörg", "")
    late = contact(PERSON, BEGIN - 60, "Before")
    changed = contact(PERSON, BEGIN + 60, "After", "edit")
    for entry in (changed, late):
        await ingest(stack, body("1", "smb_app_state_sync", state_sync=[entry]))
        assert (await customer(stack, phone_number=SHEENA)).customer_name == "After"
    removed = contact(PERSON, BEGIN + 90, action="remove")
    await ingest(stack, body("1", "smb_app_state_sync", state_sync=[removed]))
    assert (await customer(stack, phone_number=SHEENA)).customer_name == "Shee"


async def test_a_removed_entry_makes_nobody_a_customer(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    entries = [contact(PERSON, BEGIN, action="remove")]
    assert await ingest(stack, body("1", "smb_app_state_sync", state_sync=entries)) == {"customers": 1}
    error = await failure(customer(stack, phone_number=SHEENA))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CUSTOMER_NOT_FOUND")


async def test_choices_about_marketing_messages_opt_customers_out_and_in(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    choices = [choice(PERSON, BEGIN), choice("", BEGIN, user_id=ANA_ID)]
    assert await ingest(stack, body("1", "user_preferences", user_preferences=choices)) == {"customers": 2}
    for named in ({"phone_number": SHEENA}, {"user_id": ANA_ID}):
        found = await customer(stack, **named)
        assert (found.opted_out, found.opt_out_reason) == (True, "User requested to stop")
        assert found.opt_out_time.seconds == BEGIN
    later = [choice(PERSON, str(BEGIN + 60), "resume")]
    for again in (later, [choice(PERSON, BEGIN + 30)]):
        await ingest(stack, body("1", "user_preferences", user_preferences=again))
        assert not (await customer(stack, phone_number=SHEENA)).opted_out
    conversations = pb.ListConversationsRequest(salon_id=SALON)
    assert not (await stack.messaging.ListConversations(conversations)).conversations


async def test_an_entry_that_says_nothing_is_kept_and_does_not_lose_its_neighbors(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    bad = [
        (contact("x", BEGIN), "phone_number: not a phone number"),
        (contact("", BEGIN), "phone_number: neither a phone number nor a user id"),
        (contact(PERSON, BEGIN) | {"metadata": {"timestamp": True}}, "timestamp: not the seconds since 1970"),
        (contact(PERSON, BEGIN) | {"contact": 7}, "is not an object"),
        (7, "is not an object"),
    ]
    entries = [*(entry for entry, _ in bad), contact(PERSON, BEGIN, "Sheena")]
    counted = await ingest(stack, body("1", "smb_app_state_sync", state_sync=entries))
    assert counted == {"customers": 1, "rejected": len(bad)}
    unknown = [contact(PERSON, BEGIN) | {"type": "label"}, contact(PERSON, BEGIN, action="pin")]
    assert await ingest(stack, body("1", "smb_app_state_sync", state_sync=unknown)) == {"unknown": 2}
    odd = [choice(PERSON, BEGIN, "pause"), choice(PERSON, BEGIN, category="surveys"), choice(PERSON, -1)]
    assert await ingest(stack, body("1", "user_preferences", user_preferences=odd)) == {"unknown": 2, "rejected": 1}
    reasons = {one.reason for one in await failures(stack)}
    assert reasons > {reason for _, reason in bad}
    assert "user_preferences: 'marketing_messages' 'pause' is not known" in reasons


async def test_what_has_no_place_is_kept_with_the_name_of_its_field(stack: Stack) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    for name in UNPLACED:
        assert await ingest(stack, payload(name)) == {"unknown": 1}
    kept = [*await failures(stack), *await failures(stack, "")]
    assert len(kept) == len(UNPLACED)
    for field in UNPLACED.values():
        expected = "errors: WhatsApp reports an error" if field == "errors" else f"field: '{field}' is not known"
        assert [one for one in kept if one.reason == expected and one.raw_json], field


async def test_items_of_an_unknown_number_are_kept_and_recorded_by_a_replay_once_the_salon_exists(stack: Stack) -> None:
    bodies = [
        webhook_body("1", messages=[text(1)]),
        body("1", "smb_message_echoes", message_echoes=[echo("wamid.2", BEGIN)]),
        history_body("1", past("wamid.3", BEGIN - 60, sent=True), past("wamid.4", BEGIN - 50)),
        body("1", "calls", calls=[call("wacid.5", "terminate", BEGIN + 9)]),
        body("1", "messages", messages=[reaction("wamid.6", "wamid.2", BEGIN + 20)]),
        body("1", "smb_app_state_sync", state_sync=[contact(PERSON, BEGIN, "Sheena")]),
        body("1", "user_preferences", user_preferences=[choice(PERSON, BEGIN)]),
    ]
    for one in bodies:
        assert set(await ingest(stack, one)) == {"rejected"}
    assert len(await failures(stack, "")) == 8
    await salon(stack, phone_number_id="1")
    await stack.messaging.ReplayWebhookFailures(pb.ReplayWebhookFailuresRequest())
    assert await failures(stack, "") == []
    found = await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id=SALON, phone_number=SHEENA))
    assert {one.whatsapp_id: (one.direction, one.origin) for one in found.messages} == {
        "wacid.5": (pb.MESSAGE_DIRECTION_INBOUND, pb.MESSAGE_ORIGIN_UNSPECIFIED),
        "wamid.1": (pb.MESSAGE_DIRECTION_INBOUND, pb.MESSAGE_ORIGIN_UNSPECIFIED),
        "wamid.2": (pb.MESSAGE_DIRECTION_OUTBOUND, pb.MESSAGE_ORIGIN_PHONE_APP),
        "wamid.3": (pb.MESSAGE_DIRECTION_OUTBOUND, pb.MESSAGE_ORIGIN_HISTORY),
        "wamid.4": (pb.MESSAGE_DIRECTION_INBOUND, pb.MESSAGE_ORIGIN_HISTORY),
    }
    assert [one.emoji for message in found.messages for one in message.reactions] == ["❤️"]
    sheena = await customer(stack, phone_number=SHEENA)
    assert (sheena.customer_name, sheena.opted_out) == ("Sheena", True)


async def test_a_changed_number_or_user_id_keeps_one_conversation_that_all_names_find(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    new, before = "4917112345678", {"from_user_id": "US.1"}
    bodies = [
        webhook_body("1", messages=[text(1, **before)]),
        webhook_body("1", messages=[text(2, timestamp=str(BEGIN + 60), **{"from": new}, from_user_id="US.2")]),
        webhook_body(
            "1",
            messages=[
                system("wamid.3", BEGIN + 30, "user_changed_number", wa_id=new, user_id="US.2") | before,
            ],
        ),
        webhook_body(
            "1",
            messages=[
                system("wamid.4", BEGIN + 90, "user_changed_user_id", user_id="US.3", previous_user_id="US.2")
                | {"from": new}
            ],
        ),
    ]
    for one in bodies:
        await ingest(stack, one)
    assert rows(stack.database_url, "SELECT phone_number, user_id, unread_count FROM conversations") == [
        (f"+{new}", "US.3", 2)
    ]
    names: list[Any] = [
        {"phone_number": SHEENA},
        {"phone_number": f"+{new}"},
        *({"user_id": f"US.{one}"} for one in (1, 2, 3)),
    ]
    for named in names:
        request = pb.GetConversationRequest(salon_id=SALON, **named)
        found = await stack.messaging.GetConversation(request)
        assert [one.whatsapp_id for one in found.messages] == ["wamid.4", "wamid.2", "wamid.3", "wamid.1"]
