"""The inbox: rows with their last message, filters, the service window, and what is marked as read."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import PHONE, SALON, Fields, Stack, failure, fresh, message_request, salon, walk, warm
from tests.test_conversations import conversation, put

ACTIVE, CLOSED, ARCHIVED = pb.ConversationStatus.values()[1:]
OUTBOUND = {"direction": "MESSAGE_DIRECTION_OUTBOUND", "type": pb.MESSAGE_TYPE_TEMPLATE}


def listing(**fields: Any) -> pb.ListConversationsRequest:
    return pb.ListConversationsRequest(**{"salon_id": SALON, **fields})


def read(**fields: Any) -> pb.MarkConversationReadRequest:
    return pb.MarkConversationReadRequest(**{"salon_id": SALON, "phone_number": PHONE, **fields})


async def listed(stack: Stack, **fields: Any) -> list[str]:
    """Return the phone numbers of a list's conversations."""
    return [one.phone_number for one in (await stack.messaging.ListConversations(listing(**fields))).conversations]


async def test_a_row_has_an_excerpt_of_the_last_message(stack: Stack) -> None:
    await salon(stack)
    await conversation(stack, content="first", send_time=Timestamp(seconds=1000))
    sent: Fields = {"send_time": Timestamp(seconds=2000), "content": "💇ä" * 100, **OUTBOUND}
    message = await stack.messaging.RecordMessage(message_request("wamid.2", **sent))
    await conversation(stack, "wamid.0", content="earlier", send_time=Timestamp(seconds=500))
    [row] = (await warm(stack.messaging.ListConversations, listing())).conversations
    assert (row.last_message.message_id, row.last_message.create_time) == (message.message_id, message.create_time)
    assert (row.last_message.direction, row.last_message.type) == (message.direction, message.type)
    assert row.last_message.content == "💇ä" * 80
    assert row.last_message.status == pb.MESSAGE_STATUS_PENDING
    status: Fields = {"salon_id": SALON, "whatsapp_id": "wamid.2", "status": pb.MESSAGE_STATUS_READ}
    await stack.messaging.RecordMessageStatus(pb.RecordMessageStatusRequest(**status))
    [row] = (await fresh(stack.messaging.ListConversations, listing())).conversations
    assert row.last_message.status == pb.MESSAGE_STATUS_READ
    assert not (await conversation_of(stack)).HasField("last_message")


async def conversation_of(stack: Stack, phone: str = PHONE) -> pb.Conversation:
    """Return a customer's conversation."""
    request = pb.GetConversationRequest(salon_id=SALON, phone_number=phone)
    return await stack.messaging.GetConversation(request)


@pytest.mark.parametrize("page_size", [1, 5, 200])
async def test_conversations_are_listed_by_any_combination_of_filters(stack: Stack, page_size: int) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await conversation(stack, salon_id="salon-2")
    random, now = Random(7), datetime.now(UTC)
    windows = {True: now + timedelta(days=1), False: now - timedelta(days=1), None: None}
    opened: dict[str, bool] = {}
    for number in range(24):
        sent: Fields = {"phone_number": f"+491510000{number:02}", "send_time": Timestamp(seconds=1000 + number // 5)}
        found = await conversation(stack, f"wamid.{number}", **sent)
        window = random.choice((True, False, None))
        opened[found] = bool(window)
        put(
            stack,
            found,
            status=random.choice(("ACTIVE", "CLOSED", "ARCHIVED")),
            assignee=random.choice(("", "anna", "ben")),
            tags=random.choice(([], ["vip"], ["late", "vip"], ["late", "new"])),
            unread_count=random.choice((0, 2)),
            service_window_expires_at=windows[window],
        )
    everything = await walk(stack.messaging.ListConversations, listing(), 200)
    assert len(everything) == 24
    filters: list[list[tuple[Fields, Callable[[Any], bool]]]] = [
        [
            ({}, lambda one: True),
            ({"statuses": [CLOSED, ACTIVE]}, lambda one: one.status in (ACTIVE, CLOSED)),
            ({"statuses": [ARCHIVED], "status": ARCHIVED}, lambda one: one.status == ARCHIVED),
        ],
        [
            ({}, lambda one: True),
            ({"tags_any": ["new", "vip", "x"]}, lambda one: bool({"new", "vip"} & set(one.tags))),
            ({"tags_all": ["vip", "late"]}, lambda one: {"late", "vip"} <= set(one.tags)),
            ({"tags_all": ["late"], "tag": "new"}, lambda one: {"late", "new"} <= set(one.tags)),
        ],
        [
            ({}, lambda one: True),
            ({"unassigned": True}, lambda one: not one.assignee),
            ({"assignee": "ben", "unread_only": True}, lambda one: one.assignee == "ben" and one.unread_count),
        ],
        [
            ({}, lambda one: True),
            ({"window_open": True}, lambda one: opened[one.conversation_id]),
            ({"window_open": False}, lambda one: not opened[one.conversation_id]),
        ],
    ]
    for chosen in product(*filters):
        fields = {name: value for given, _ in chosen for name, value in given.items()}
        expected = [one for one in everything if all(matches(one) for _, matches in chosen)]
        assert await walk(stack.messaging.ListConversations, listing(**fields), page_size) == expected, fields


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("müller", [1]),
        ("MULL", [1]),
        ("anna", [1, 2]),
        ("ann mül", [1]),
        ("ller", []),
        ("o'brien", [3]),
        ("brien", [3]),
        ("太郎", [4]),
        ("山", [4]),
        ("+49151000011", [1]),
        ("+49 151 0000-11", [1]),
        ("0049151000011", [1]),
        ("49151000011", [1]),
        ("0151 000011", [1]),
        ("+49", [1, 2, 3, 4]),
        ("0152", []),
        ("+", []),
        ("💇", []),
        ("%", []),
        ("'", []),
        ("\\", []),
        ("anna:* | !x", []),
    ],
)
async def test_a_query_finds_words_of_the_name_and_the_beginning_of_the_number(
    stack: Stack, query: str, found: list[int]
) -> None:
    await salon(stack, region_code="DE")
    for number, name in enumerate(("Anna Müller", "Anna-Lena", "Seán O'Brien", "山田太郎"), 1):
        await named(stack, number, name)
    assert sorted(await listed(stack, query=query)) == [phone(number) for number in found]


def phone(number: int) -> str:
    return f"+491510000{number}111"


async def named(stack: Stack, number: int, name: str) -> None:
    """Make a conversation of a customer with a name."""
    put(stack, await conversation(stack, f"wamid.{number}", phone_number=phone(number)), customer_name=name)


async def test_a_national_query_needs_the_region_of_the_salon(stack: Stack) -> None:
    await salon(stack)
    await named(stack, 1, "Anna")
    assert await listed(stack, query="0151") == []
    await salon(stack, region_code="DE")
    assert await listed(stack, query="0151") == [phone(1)]


async def test_a_list_by_window_changes_when_a_window_closes(stack: Stack) -> None:
    await salon(stack)
    expires = datetime.now(UTC) + timedelta(seconds=2)
    put(stack, await conversation(stack), service_window_expires_at=expires)
    while (now := datetime.now(UTC)) < expires + timedelta(seconds=0.5):
        open_, closed = await listed(stack, window_open=True), await listed(stack, window_open=False)
        if now >= expires:
            assert (open_, closed) == ([], [PHONE])
        elif datetime.now(UTC) < expires:
            assert (open_, closed) == ([PHONE], [])


async def test_a_list_by_window_is_cached_until_a_window_closes(stack: Stack) -> None:
    await salon(stack)
    await conversation(stack)
    for window_open in (True, False):
        await warm(stack.messaging.ListConversations, listing(window_open=window_open))
    await conversation(stack, "wamid.2")
    assert await fresh(stack.messaging.ListConversations, listing(window_open=True))


async def test_bad_filters_are_named(stack: Stack) -> None:
    bad: list[tuple[Fields, str]] = [
        ({"statuses": [0]}, "statuses[0]"),
        ({"statuses": [9]}, "statuses[0]"),
        ({"statuses": [1, 2, 3, 1]}, "statuses"),
        ({"tags_any": [""]}, "tags_any[0]"),
        ({"tags_all": ["x" * 65]}, "tags_all[0]"),
        ({"tags_any": ["x"] * 51}, "tags_any"),
        ({"unassigned": True, "assignee": "anna"}, "unassigned"),
        ({"query": "x" * 101}, "query"),
        ({"query": "a\0b"}, "query"),
    ]
    for fields, field in bad:
        error = await failure(stack.messaging.ListConversations(listing(**fields)))
        assert (error.reason, error.fields) == ("INVALID_FIELD", [field]), fields
    token = (await stack.messaging.ListConversations(listing(page_size=1))).next_page_token
    assert token == ""


async def test_a_message_that_comes_meanwhile_stays_unread(stack: Stack) -> None:
    await salon(stack)
    seen = [
        await stack.messaging.RecordMessage(message_request(f"wamid.{n}", send_time=Timestamp(seconds=1000 + n)))
        for n in range(3)
    ]
    await stack.messaging.RecordMessage(message_request("wamid.out", send_time=Timestamp(seconds=1004), **OUTBOUND))
    await stack.messaging.RecordMessage(message_request("wamid.new", send_time=Timestamp(seconds=1005)))
    unread = [
        (await stack.messaging.MarkConversationRead(read(up_to_message_id=message.message_id))).unread_count
        for message in (seen[0], seen[2], seen[1])
    ]
    assert unread == [3, 1, 1]
    assert (await conversation_of(stack)).unread_count == 1
    newest = (await conversation_of(stack)).messages[0].message_id
    assert (await stack.messaging.MarkConversationRead(read(up_to_message_id=newest.upper()))).unread_count == 0
    assert (await stack.messaging.MarkConversationRead(read())).unread_count == 0


async def test_a_conversation_is_marked_as_read_only_up_to_a_message_of_its_own(stack: Stack) -> None:
    await salon(stack)
    await conversation(stack)
    other = await stack.messaging.RecordMessage(message_request("wamid.2", phone_number="+4915100000000"))
    for message_id in (other.message_id, str(uuid4())):
        error = await failure(stack.messaging.MarkConversationRead(read(up_to_message_id=message_id)))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "MESSAGE_NOT_FOUND")
    assert (await failure(stack.messaging.MarkConversationRead(read(up_to_message_id="1")))).fields == [
        "up_to_message_id"
    ]
    assert (await conversation_of(stack)).unread_count == 1
