"""Reactions, edits and revokes change their message, in any order of arrival."""

import itertools
from typing import Any

import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.kinds import NUMBER, PERSON, Item, body, edit, message, reaction, revoke
from tests.stack import SALON, Stack, message_request, rows, salon, webhook_body
from tests.test_webhook import ingest, text

SECOND = 1_749_416_383
BY_SALON = {"from": NUMBER, "to": PERSON}
OUTBOUND, INBOUND = pb.MESSAGE_DIRECTION_OUTBOUND, pb.MESSAGE_DIRECTION_INBOUND


async def received(stack: Stack, *items: Item, number: str = "1") -> None:
    """Deliver items one by one; those that the salon sent as echoes."""
    for item in items:
        is_echo = item["from"] == NUMBER
        echo = body(number, "smb_message_echoes", message_echoes=[item])
        one = echo if is_echo else webhook_body(number, messages=[item])
        assert await ingest(stack, one) == {"messages": 1}


async def get(stack: Stack, whatsapp_id: str = "wamid.1", salon_id: str = SALON) -> pb.Message:
    return await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=salon_id, whatsapp_id=whatsapp_id))


def emojis(found: pb.Message) -> list[tuple[str, int]]:
    """Return the reactions of a message with their direction."""
    return [(one.emoji, one.direction) for one in found.reactions]


async def test_the_state_of_a_message_does_not_depend_on_the_order(stack: Stack) -> None:
    items = [
        text(1),
        reaction("wamid.2", "wamid.1", SECOND + 1, "👍", **BY_SALON),
        edit("wamid.3", "wamid.1", SECOND + 2, "new"),
        edit("wamid.4", "wamid.1", SECOND + 3, "newer"),
    ]
    for number, order in enumerate(itertools.permutations(items)):
        name = f"salon-{number}"
        await salon(stack, name, phone_number_id=name)
        await received(stack, *order, number=name)
        found = await get(stack, salon_id=name)
        assert (found.content, found.edited_time.seconds, emojis(found)) == ("newer", SECOND + 3, [("👍", OUTBOUND)])
        assert '"hi"' in found.raw_json


async def test_each_side_has_one_reaction_the_latest_and_may_take_it_back(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await received(stack, text(1), reaction("wamid.2", "wamid.1", SECOND + 5, "❤️"))
    await received(stack, reaction("wamid.3", "wamid.1", SECOND + 1, "😡"))  # earlier, but late
    await received(stack, reaction("wamid.4", "wamid.1", SECOND + 6, "👍", **BY_SALON))
    assert emojis(await get(stack)) == [("❤️", INBOUND), ("👍", OUTBOUND)]
    await received(stack, reaction("wamid.5", "wamid.1", SECOND + 7, None))
    assert emojis(await get(stack)) == [("👍", OUTBOUND)]
    await received(stack, reaction("wamid.6", "wamid.1", SECOND + 8, ""))
    await received(stack, reaction("wamid.7", "wamid.1", SECOND + 9, "🎉"))
    assert emojis(await get(stack)) == [("👍", OUTBOUND), ("🎉", INBOUND)]


async def test_only_the_sender_of_a_message_can_edit_or_revoke_it(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await received(stack, text(1), text(id="wamid.2", **BY_SALON))
    await received(stack, edit("wamid.3", "wamid.2", SECOND + 1, "hacked"), revoke("wamid.4", "wamid.2", SECOND + 2))
    await received(stack, edit("wamid.5", "wamid.1", SECOND + 3, "hacked", **BY_SALON))
    await received(stack, revoke("wamid.6", "wamid.1", SECOND + 4, **BY_SALON))
    for name in ("wamid.1", "wamid.2"):
        found = await get(stack, name)
        assert found.content == "hi"
        assert not found.HasField("edited_time")
        assert not found.HasField("revoked_time")


@pytest.mark.parametrize("late", [False, True])
async def test_a_revoked_message_has_no_content_even_if_edits_follow(stack: Stack, late: bool) -> None:
    await salon(stack, phone_number_id="1")
    image = message("wamid.1", "image", SECOND, {"id": "77", "caption": "Look"}, referral={"source_id": "7"})
    changes = [revoke("wamid.2", "wamid.1", SECOND + 5), edit("wamid.3", "wamid.1", SECOND + 6, "again")]
    await received(stack, *([*changes, image] if late else [image, *changes]))
    found = await get(stack)
    assert (found.content, found.media_id, found.HasField("referral")) == ("", "", False)
    assert found.revoked_time.seconds == SECOND + 5


async def test_an_edited_caption_keeps_the_media_and_edited_media_replace_it(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await received(stack, message("wamid.1", "image", SECOND, {"id": "77", "caption": "Look"}))
    for second, media in ((1, {"caption": "Look here"}), (2, {"id": "78", "caption": "Look there"})):
        edited = {"original_message_id": "wamid.1", "message": {"type": "image", "image": media}}
        await received(stack, message(f"wamid.e{second}", "edit", SECOND + second, edited))
        found = await get(stack)
        assert (found.content, found.media_id) == (media["caption"], media.get("id", "77"))


async def test_a_repeat_of_an_amendment_is_a_duplicate_and_writes_nothing(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    items = [text(1), reaction("wamid.2", "wamid.1", SECOND), edit("wamid.3", "wamid.1", SECOND, "new")]
    items += [reaction("wamid.4", "wamid.1", SECOND + 1, **BY_SALON), revoke("wamid.6", "wamid.unknown", SECOND)]
    assert await ingest(stack, webhook_body("1", messages=items)) == {"messages": len(items)}
    before = state(stack)
    assert await ingest(stack, webhook_body("1", messages=items)) == {"duplicates": len(items)}
    assert state(stack) == before
    await ingest(stack, webhook_body("1", messages=[*items[1:], revoke("wamid.5", "wamid.1", SECOND + 9)]))
    after = state(stack)
    assert after[0] != before[0]
    assert await ingest(stack, webhook_body("1", messages=items)) == {"duplicates": len(items)}
    assert state(stack) == after


def state(stack: Stack) -> Any:
    """Return all rows that an amendment may write, with their versions."""
    tables = ("messages", "conversations", "message_amendments", "message_changes")
    return [rows(stack.database_url, f"SELECT xmin::text, t::text FROM {table} AS t ORDER BY 2") for table in tables]


PARTS: list[Any] = [None, 7, "new", [], {}, {"type": 7}, {"type": "text"}, {"type": "text", "text": 7}]
UNREADABLE: list[Any] = [
    {},
    *({"message": part} for part in PARTS),
    {"message": {"type": "text", "text": {}}},
    {"message": {"type": "text", "text": {"body": ""}}},
    {"message": {"type": "text", "text": {"body": 7}}},
    {"message": {"type": "image", "image": {}}},
    {"message": {"type": "edit", "edit": {"body": "new"}}},
    {"message": {"type": "hologram", "hologram": {"angle": 7}}},
]


async def test_an_edit_without_a_message_that_can_be_read_changes_nothing_and_is_kept(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await received(stack, text(1))
    before = await get(stack)
    edits = [
        message(f"wamid.e{place}", "edit", SECOND + place, {"original_message_id": "wamid.1", **part})
        for place, part in enumerate(UNREADABLE)
    ]
    assert await ingest(stack, webhook_body("1", messages=edits)) == {"rejected": len(edits)}
    assert await get(stack) == before
    kept = await stack.messaging.ListWebhookFailures(pb.ListWebhookFailuresRequest(salon_id=SALON))
    assert {one.kind for one in kept.webhook_failures} == {pb.WEBHOOK_ITEM_KIND_MESSAGE}
    captions = [{"id": "77", "caption": "Look"}, {"id": "77"}]
    for second, media in enumerate(captions, 1):  # a caption may be taken away
        part = {"original_message_id": "wamid.1", "message": {"type": "image", "image": media}}
        await received(stack, message(f"wamid.{second}", "edit", SECOND + second, part))
        assert (await get(stack)).content == media.get("caption", "")


async def test_a_reaction_that_came_before_its_message_was_sent_is_on_it_once_its_id_is_known(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await received(stack, text(1), reaction("wamid.2", "wamid.3", SECOND + 9, "❤️"))
    request = message_request("", phone_number=f"+{PERSON}", direction="MESSAGE_DIRECTION_OUTBOUND")
    request.send_time.FromSeconds(SECOND + 5)
    sent = await stack.messaging.RecordMessage(request)
    known = {"salon_id": SALON, "message_id": sent.message_id, "whatsapp_id": "wamid.3"}
    assert emojis(await stack.messaging.RecordMessageSent(pb.RecordMessageSentRequest(**known))) == [("❤️", INBOUND)]
    recorded = message_request("wamid.4", phone_number=f"+{PERSON}")
    await received(stack, reaction("wamid.5", "wamid.4", SECOND + 9, "👍", **BY_SALON))
    assert emojis(await stack.messaging.RecordMessage(recorded)) == [("👍", OUTBOUND)]


async def test_an_amendment_is_seen_at_once_in_cached_lists(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await received(stack, text(1))
    named: Any = {"salon_id": SALON, "phone_number": f"+{PERSON}"}
    for number, change in enumerate(("one", "two", "three")):
        await received(stack, edit(f"wamid.e{number}", "wamid.1", SECOND + number, change))
        listed = await stack.messaging.ListMessages(pb.ListMessagesRequest(**named))
        shown = await stack.messaging.GetConversation(pb.GetConversationRequest(**named))
        assert [one.content for one in (*listed.messages, *shown.messages)] == [change, change]
        inbox = await stack.messaging.ListConversations(pb.ListConversationsRequest(salon_id=SALON))
        assert [one.last_message.content for one in inbox.conversations] == [change]


async def test_each_member_of_a_group_has_a_reaction(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    group = {"group_id": "R3JvdXA"}
    other = {"from": "4915112345678", **group}
    await received(stack, text(1, **group), reaction("wamid.2", "wamid.1", SECOND + 1, "❤️", **group))
    await received(stack, reaction("wamid.3", "wamid.1", SECOND + 2, "👍", **other))
    found = await get(stack)
    assert [(one.emoji, one.phone_number) for one in found.reactions] == [("❤️", f"+{PERSON}"), ("👍", "+4915112345678")]
    await received(stack, reaction("wamid.4", "wamid.1", SECOND + 3, None, **other))
    assert [one.emoji for one in (await get(stack)).reactions] == ["❤️"]
