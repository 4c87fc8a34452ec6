"""What each kind of webhook item does to its conversation, and to the statistics (the table of rules)."""

from typing import Any

import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.kinds import NUMBER, PERSON, body, call, echo, edit, history, message, past, reaction, revoke, system
from tests.stack import Stack, salon
from tests.test_webhook import ingest, text

FIRST, LATER, DAY = 1_749_400_000, 1_749_410_000, 86_400
CUSTOMER, NUMBER_ID = f"+{PERSON}", b"NUMBER_ID"
CLOSED, ACTIVE = pb.CONVERSATION_STATUS_CLOSED, pb.CONVERSATION_STATUS_ACTIVE
GROUP: dict[str, Any] = {"group_id": "Y2FwaV9ncm91cA"}


def live(kind: str, part: Any, **fields: Any) -> bytes:
    """Return the body of one message."""
    return body("NUMBER_ID", "messages", messages=[message("wamid.2", kind, LATER, part, **fields)])


def calls(*events: Any) -> bytes:
    """Return the body of events of calls."""
    return body("NUMBER_ID", "calls", calls=list(events))


def echoes(*items: Any) -> bytes:
    """Return the body of messages that were sent on the phone app."""
    return body("NUMBER_ID", "smb_message_echoes", message_echoes=list(items))


MEDIA = {kind: live(kind, {"id": "77"}) for kind in ("image", "audio", "video", "document", "sticker")}
# As the customer writes: unread + 1, ACTIVE, the window opens, counted.
WRITTEN = {
    **MEDIA,
    "text": live("text", {"body": "hi"}),
    "interactive": live("interactive", {"type": "button_reply", "button_reply": {"id": "1", "title": "Yes"}}),
    "button": live("button", {"payload": "1", "text": "Yes"}),
    "order": live("order", {"catalog_id": "1", "product_items": []}),
    "location": live("location", {"latitude": 1, "longitude": 2}),
    "contacts": live("contacts", [{"name": {"formatted_name": "Ann"}}]),
    "a type of the future": live("hologram", {}),
    "unsupported": live("unsupported", None),
}
NOTHING = {
    "an edit": body("NUMBER_ID", "messages", messages=[edit("wamid.2", "wamid.1", LATER, "new")]),
    "an edit before its message": body("NUMBER_ID", "messages", messages=[edit("wamid.2", "wamid.9", LATER, "new")]),
    "a revoke": body("NUMBER_ID", "messages", messages=[revoke("wamid.2", "wamid.1", LATER)]),
    "a system message": body("NUMBER_ID", "messages", messages=[system("wamid.2", LATER)]),
    "history": history("NUMBER_ID", past("wamid.2", LATER)),
    "sent history": history("NUMBER_ID", past("wamid.2", LATER, sent=True)),
    "media of history": body(
        "NUMBER_ID", "history", messages=[past("wamid.2", LATER, type="image", image={"id": "77"})]
    ),
    "a call by the salon": calls(
        {**call("wacid.2", "connect", LATER), "direction": "BUSINESS_INITIATED", "from": NUMBER, "to": PERSON}
    ),
    "a reaction by the salon": echoes(reaction("wamid.2", "wamid.1", LATER, **{"from": NUMBER, "to": PERSON})),
    "a message in a group": live("text", {"body": "hi"}, **GROUP),
    "a reaction in a group": body("NUMBER_ID", "messages", messages=[reaction("wamid.2", "wamid.1", LATER, **GROUP)]),
}
# unread_count, reopened, window opened, counted
CASES: dict[str, tuple[bytes, int, bool, bool, int]] = {
    **{name: (payload, 1, True, True, 1) for name, payload in WRITTEN.items()},
    **{name: (payload, 0, False, False, 0) for name, payload in NOTHING.items() if "in a group" not in name},
    "a message in a group": (NOTHING["a message in a group"], 0, False, False, 1),
    "a reaction in a group": (NOTHING["a reaction in a group"], 0, False, False, 0),
    "a reaction": (body("NUMBER_ID", "messages", messages=[reaction("wamid.2", "wamid.1", LATER)]), 0, False, True, 0),
    "a reaction taken back": (
        body("NUMBER_ID", "messages", messages=[reaction("wamid.2", "wamid.1", LATER, None)]),
        0,
        False,
        True,
        0,
    ),
    "a call that rings": (calls(call("wacid.2", "connect", LATER)), 0, True, True, 0),
    "a missed call": (calls(call("wacid.2", "connect", LATER), call("wacid.2", "terminate", LATER)), 1, True, True, 0),
    "a call that was taken": (
        calls(call("wacid.2", "connect", LATER), call("wacid.2", "terminate", LATER, 60)),
        0,
        True,
        True,
        0,
    ),
    "an echo": (echoes(echo("wamid.2", LATER)), 0, False, False, 1),
}


async def conversation(stack: Stack, salon_id: str) -> pb.Conversation:
    """Return the customer's conversation."""
    return await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=salon_id, phone_number=CUSTOMER))


async def counted(stack: Stack, salon_id: str) -> int:
    """Return the number of messages in the statistics."""
    request = stats_pb2.GetSalonStatsRequest(salon_id=salon_id)
    request.start_time.FromSeconds(FIRST - DAY)
    request.end_time.FromSeconds(LATER + DAY)
    return (await stack.stats.GetSalonStats(request)).messages


async def effects(stack: Stack, salon_id: str, payload: bytes) -> tuple[int, bool, bool, int]:
    """Return what a body does to a closed conversation: unread, reopened, window opened, counted."""
    await salon(stack, salon_id, phone_number_id=salon_id)
    await ingest(stack, body(salon_id, "messages", messages=[text(1, timestamp=str(FIRST))]))
    named = {"salon_id": salon_id, "phone_number": CUSTOMER}
    await stack.messaging.UpdateConversationStatus(pb.UpdateConversationStatusRequest(status=CLOSED, **named))
    await stack.messaging.MarkConversationRead(pb.MarkConversationReadRequest(**named))
    assert sum((await ingest(stack, payload.replace(NUMBER_ID, salon_id.encode()))).values()) >= 1
    found = await conversation(stack, salon_id)
    until = found.service_window_expires_time.seconds - DAY
    assert until in (FIRST, LATER)
    return found.unread_count, found.status == ACTIVE, until == LATER, await counted(stack, salon_id) - 1


async def test_each_kind_has_the_effects_of_its_rule(stack: Stack) -> None:
    wrong = {}
    for number, (name, (payload, *wanted)) in enumerate(CASES.items()):
        found = await effects(stack, f"salon-{number}", payload)
        if found != tuple(wanted):
            wrong[name] = found
    assert wrong == {}


async def test_a_type_in_other_letters_is_unknown_and_has_the_effects_of_a_message(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    kinds = ("REACTION", "SYSTEM", "Call", "Edit", "TEXT")
    items = [message(f"wamid.{place}", kind, FIRST, {"body": "hi"}) for place, kind in enumerate(kinds)]
    assert await ingest(stack, body("1", "messages", messages=items)) == {"unknown": len(kinds)}
    found = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id="salon-1", phone_number=CUSTOMER))
    assert (found.unread_count, await counted(stack, "salon-1")) == (len(kinds), len(kinds))
    assert {one.type for one in found.messages} == {pb.MESSAGE_TYPE_UNKNOWN}


async def test_no_item_of_a_group_is_lost_or_gets_into_the_conversation_of_its_sender(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    bad = [text(f"bad.{place}", group_id=one) for place, one in enumerate((7, "", [], {}, True, "x" * 257, "a\0b"))]
    bad.append(reaction("wamid.bad.r", "wamid.1", FIRST, group_id=7))
    parts: dict[str, Any] = {"text": {"body": "hi"}, "call": {}, "system": {"type": "x"}, "hologram": {}}
    good = [message(f"wamid.{kind}", kind, FIRST, part, **GROUP) for kind, part in parts.items()]
    payload = body("1", "messages", messages=[*bad, *good])
    assert await ingest(stack, payload) == {"rejected": len(bad), "messages": len(good) - 1, "unknown": 1}
    assert await ingest(stack, payload) == {"duplicates": len(bad) + len(good)}
    listed = await stack.messaging.ListConversations(pb.ListConversationsRequest(salon_id="salon-1"))
    [group] = listed.conversations
    assert group.group_id == GROUP["group_id"]
    found = await stack.messaging.ListMessages(
        pb.ListMessagesRequest(salon_id="salon-1", conversation_id=group.conversation_id)
    )
    assert {one.whatsapp_id for one in found.messages} == {item["id"] for item in good}


EVENTS = [
    [call("wacid.1", "connect", FIRST, **GROUP), call("wacid.1", "terminate", LATER, **GROUP)],
    [call("wacid.1", "terminate", LATER, **GROUP), call("wacid.1", "connect", FIRST, **GROUP)],
    [call("wacid.1", "terminate", LATER, **GROUP)],
]


@pytest.mark.parametrize("items", EVENTS)
async def test_a_call_in_a_group_is_of_the_group(stack: Stack, items: list[Any]) -> None:
    await salon(stack, phone_number_id="1")
    refused = [call(f"wacid.bad.{place}", "connect", FIRST, group_id=one) for place, one in enumerate((7, "", []))]
    for one in [*items, *refused]:
        await ingest(stack, body("1", "calls", calls=[one]))
    listed = await stack.messaging.ListConversations(pb.ListConversationsRequest(salon_id="salon-1"))
    [group] = listed.conversations
    assert (group.group_id, group.unread_count, group.status) == (GROUP["group_id"], 1, ACTIVE)
    assert not group.HasField("service_window_expires_time")
    found = await stack.messaging.ListMessages(
        pb.ListMessagesRequest(salon_id="salon-1", conversation_id=group.conversation_id)
    )
    assert [one.call.status for one in found.messages] == [pb.CALL_STATUS_MISSED]
    kept = await stack.messaging.ListWebhookFailures(pb.ListWebhookFailuresRequest(salon_id="salon-1"))
    assert len(kept.webhook_failures) == len(refused)
