"""Fields of webhook bodies besides messages and statuses: customers, identities, and what has no place."""

from typing import Any

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.kinds import PERSON, body, call, echo, past, reaction, system
from tests.kinds import history as history_body
from tests.stack import SALON, Stack, rows, salon, walk, webhook_body
from tests.test_webhook import ingest, text
from tests.whatsapp import PHONE_NUMBER_ID, payload
from tests.whatsapp_cases import SHEENA
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
