"""Conversations: found by their names, assigned, tagged, marked as read, and listed."""

import asyncio
from collections.abc import Callable
from itertools import product
from random import Random
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import PHONE, SALON, Fields, Stack, cached, failure, fresh, message_request, salon, walk, warm

USER = "DE.1234567890"


async def conversation(stack: Stack, name: str = "wamid.1", **fields: Any) -> str:
    """Record an inbound message and return the ID of its conversation."""
    return (await stack.messaging.RecordMessage(message_request(name, **fields))).conversation_id


def put(stack: Stack, conversation_id: str, **columns: Any) -> None:
    """Set columns of a conversation with SQL; a phone_number or user_id also as the customer's only one."""
    names = ", ".join(f"{name} = %s" for name in columns)
    query = f"UPDATE conversations SET {names} WHERE conversation_id = %s"
    with psycopg.connect(stack.database_url, autocommit=True) as conn:
        conn.execute(query.encode(), [*columns.values(), conversation_id])
        for column in {"phone_number", "user_id"} & columns.keys():
            of_kind = [conversation_id, column.upper()]
            conn.execute("DELETE FROM customer_identities WHERE customer_id = %s AND kind = %s", of_kind)
            conn.execute(
                "INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)"
                " SELECT salon_id, %s, %s, customer_id, now() FROM customers WHERE customer_id = %s AND %s",
                [columns[column] or "", column.upper(), conversation_id, columns[column] is not None],
            )


def mutations(stack: Stack) -> list[tuple[Any, Any, Fields]]:
    """Return the RPCs that change a conversation, with the types and fields of their requests."""
    return [
        (stack.messaging.UpdateConversationStatus, pb.UpdateConversationStatusRequest, {"status": 2}),
        (stack.messaging.AssignConversation, pb.AssignConversationRequest, {"assignee": "anna"}),
        (stack.messaging.TagConversation, pb.TagConversationRequest, {"add_tags": ["vip"]}),
        (stack.messaging.MarkConversationRead, pb.MarkConversationReadRequest, {}),
    ]


async def test_a_conversation_is_found_by_each_of_its_names(stack: Stack) -> None:
    await salon(stack, region_code="DE")
    found = await conversation(stack)
    put(stack, found, user_id=USER)
    other = await conversation(stack, "wamid.2", phone_number="+4915100000000")
    put(stack, other, phone_number=None, user_id="DE.2")
    names: list[Fields] = [{"conversation_id": found.upper()}, {"phone_number": "0151 12345678"}, {"user_id": USER}]
    right = [*names, {"phone_number": PHONE} | names[0], names[1] | names[2], names[0] | names[1] | names[2]]
    wrong = [{"conversation_id": str(uuid4())}, {"user_id": "DE.3"}, names[1] | {"user_id": "DE.2"}]
    wrong += [names[0] | {"salon_id": "salon-2"}, {"conversation_id": other} | names[1]]
    reads: tuple[Any, Any, Fields] = (stack.messaging.GetConversation, pb.GetConversationRequest, {})
    for rpc, kind, fields in (reads, *mutations(stack)):
        for name in right:
            assert (await rpc(kind(salon_id=SALON, **fields, **name))).conversation_id == found
        for nothing in wrong:
            error = await failure(rpc(kind(**{"salon_id": SALON, **fields, **nothing})))
            assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
        assert (await rpc(kind(salon_id=SALON, **fields, user_id="DE.2"))).conversation_id == other
        assert (await failure(rpc(kind(salon_id=SALON, **fields)))).fields == ["conversation_id"]
        assert (await failure(rpc(kind(salon_id=SALON, **fields, phone_number="12")))).fields == ["phone_number"]
    without_phone = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=SALON, user_id="DE.2"))
    assert (without_phone.phone_number, len(without_phone.messages)) == ("", 1)


async def test_a_conversation_names_its_customer_and_its_assignee(stack: Stack) -> None:
    await salon(stack)
    found = await conversation(stack)
    until = "1970-01-02 00:00:00.000001+00"
    columns = {"user_id": USER, "customer_name": "Zoë", "unread_count": 3, "service_window_expires_at": until}
    put(stack, found, **columns, assignee="anna", tags=["a", "b"])
    named: Fields = {"salon_id": SALON, "phone_number": PHONE}
    reply = await stack.messaging.GetConversation(pb.GetConversationRequest(**named))
    assert (reply.user_id, reply.customer_name, reply.assignee, reply.unread_count) == (USER, "Zoë", "anna", 3)
    assert (list(reply.tags), reply.service_window_expires_time) == (["a", "b"], Timestamp(seconds=86_400, nanos=1000))
    del reply.messages[:]
    [listed] = (await stack.messaging.ListConversations(pb.ListConversationsRequest(salon_id=SALON))).conversations
    listed.ClearField("last_message")
    assert listed == reply
    put(stack, found, service_window_expires_at=None)
    moved = await stack.messaging.UpdateConversationStatus(
        pb.UpdateConversationStatusRequest(**named, status=pb.CONVERSATION_STATUS_CLOSED)
    )
    assert not moved.HasField("service_window_expires_time")


async def test_a_conversation_is_assigned_or_unassigned(stack: Stack) -> None:
    await salon(stack)
    await conversation(stack)
    for assignee in ("anna", "💇 ';", ""):
        request = pb.AssignConversationRequest(salon_id=SALON, phone_number=PHONE, assignee=assignee)
        assert (await stack.messaging.AssignConversation(request)).assignee == assignee


async def test_tags_are_added_and_removed(stack: Stack) -> None:
    await salon(stack)
    await conversation(stack)
    steps: list[tuple[list[str], list[str], list[str]]] = [
        (["vip", "b", "vip"], [], ["b", "vip"]),
        (["a", "b"], ["vip", "nowhere"], ["a", "b"]),
        (["c"], ["c", "a"], ["b", "c"]),
        ([], ["b", "c"], []),
        ([f"{number:02}" for number in range(50)], [], [f"{number:02}" for number in range(50)]),
        (["new"], ["07"], [f"{number:02}" for number in range(50) if number != 7] + ["new"]),
    ]
    for add, remove, expected in steps:
        request = pb.TagConversationRequest(salon_id=SALON, phone_number=PHONE, add_tags=add, remove_tags=remove)
        assert list((await stack.messaging.TagConversation(request)).tags) == expected
    error = await failure(
        stack.messaging.TagConversation(request.__class__(salon_id=SALON, phone_number=PHONE, add_tags=["07"]))
    )
    assert (error.reason, error.fields) == ("INVALID_FIELD", ["add_tags"])
    listed = (await stack.messaging.ListConversations(pb.ListConversationsRequest(salon_id=SALON))).conversations
    assert list(listed[0].tags) == expected


@pytest.mark.patient
async def test_50_tags_added_concurrently_are_all_stored(stack: Stack) -> None:
    await salon(stack)
    await conversation(stack)
    tags = [f"tag {number:02}" for number in range(50)]
    named: Fields = {"salon_id": SALON, "phone_number": PHONE}
    requests = [pb.TagConversationRequest(**named, add_tags=[tag]) for tag in tags]
    await asyncio.gather(*map(stack.messaging.TagConversation, requests))
    reply = await stack.messaging.GetConversation(pb.GetConversationRequest(**named))
    assert list(reply.tags) == tags


async def test_marking_a_conversation_as_read_twice_changes_it_once(stack: Stack) -> None:
    await salon(stack)
    put(stack, await conversation(stack), unread_count=2)
    request = pb.MarkConversationReadRequest(salon_id=SALON, phone_number=PHONE)
    first = await stack.messaging.MarkConversationRead(request)
    assert first.unread_count == 0
    assert await stack.messaging.MarkConversationRead(request) == first


async def test_each_change_needs_the_current_version_happens_once_and_is_in_the_next_reply(stack: Stack) -> None:
    await salon(stack)
    found = await conversation(stack)
    named: Fields = {"salon_id": SALON, "phone_number": PHONE}
    wanted = pb.GetConversationRequest(**named)
    listed = pb.ListConversationsRequest(salon_id=SALON)
    for rpc, kind, fields in mutations(stack):
        put(stack, found, unread_count=1)
        await warm(stack.messaging.GetConversation, wanted)
        await warm(stack.messaging.ListConversations, listed)
        changed = await rpc(kind(**named, **fields, request_id=(used := str(uuid4()))))
        assert (await fresh(stack.messaging.GetConversation, wanted)).etag == changed.etag
        row = (await fresh(stack.messaging.ListConversations, listed)).conversations[0]
        row.ClearField("last_message")
        assert row == changed
        assert await rpc(kind(**named, **fields, request_id=used)) == changed
        if kind is not pb.MarkConversationReadRequest:
            assert (await rpc(kind(**named, **fields, etag=changed.etag))).etag != changed.etag
            error = await failure(rpc(kind(**named, **fields, etag=changed.etag)))
            assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
        error = await failure(rpc(kind(salon_id=SALON, user_id="x", **fields, request_id=used)))
        assert error.reason == "REQUEST_ID_REUSED"


async def test_each_name_has_its_own_cache_entry(stack: Stack) -> None:
    await salon(stack)
    put(stack, await conversation(stack), user_id=USER)
    names: list[Fields] = [{"user_id": USER}, {"phone_number": PHONE}, {"user_id": USER, "phone_number": PHONE}]
    for name in names:
        request = pb.GetConversationRequest(salon_id=SALON, **name)
        await warm(stack.messaging.GetConversation, request)
    assert (await cached(stack.messaging.GetConversation(request)))[1] == "hit"
    wrong = pb.GetConversationRequest(salon_id=SALON, user_id=PHONE)
    assert (await failure(stack.messaging.GetConversation(wrong))).reason == "CONVERSATION_NOT_FOUND"


@pytest.mark.parametrize("page_size", [1, 3, 200])
async def test_conversations_are_listed_by_any_filters_newest_activity_first(stack: Stack, page_size: int) -> None:
    await salon(stack)
    await salon(stack, "salon-2")
    await conversation(stack, salon_id="salon-2")
    random = Random(7)
    for number in range(24):
        sent: Fields = {"phone_number": f"+491510000{number:02}", "send_time": Timestamp(seconds=1000 + number // 5)}
        care = {
            "status": random.choice(("ACTIVE", "CLOSED", "ARCHIVED")),
            "assignee": random.choice(("", "anna", "ben")),
            "tags": random.choice(([], ["vip"], ["late", "vip"])),
            "unread_count": random.choice((0, 2)),
        }
        put(stack, await conversation(stack, f"wamid.{number}", **sent), **care)
    everything = await walk(stack.messaging.ListConversations, pb.ListConversationsRequest(salon_id=SALON), 200)
    order: Callable[[Any], Any] = lambda one: (one.last_message_time.seconds, one.conversation_id)  # noqa: E731
    assert everything == sorted(everything, key=order, reverse=True)
    assert len(everything) == 24
    for status, tag, unread, assignee in product((0, 1, 3), ("", "vip", "late"), (False, True), ("", "anna")):
        expected = [
            one
            for one in everything
            if status in (0, one.status) and (not tag or tag in one.tags)
            if (not unread or one.unread_count) and assignee in ("", one.assignee)
        ]
        filters: Fields = {"status": status, "tag": tag, "unread_only": unread, "assignee": assignee}
        request = pb.ListConversationsRequest(salon_id=SALON, **filters)
        assert await walk(stack.messaging.ListConversations, request, page_size) == expected, filters


async def test_a_page_token_is_valid_only_for_its_filters(stack: Stack) -> None:
    await salon(stack)
    for number in range(2):
        await conversation(stack, f"wamid.{number}", phone_number=f"+491510000{number:02}")
    first = await stack.messaging.ListConversations(pb.ListConversationsRequest(salon_id=SALON, page_size=1))
    others: list[Fields] = [{"tag": "vip"}, {"unread_only": True}, {"assignee": "anna"}, {"status": 1}]
    for filters in others:
        request = pb.ListConversationsRequest(salon_id=SALON, page_token=first.next_page_token, **filters)
        assert (await failure(stack.messaging.ListConversations(request))).fields == ["page_token"]
