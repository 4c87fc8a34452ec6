"""ListMessageChanges and WatchMessages: every change of messages, conversations and customers, in order."""

import asyncio
import hashlib
import hmac
import time
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.changes import message_changes
from tests.feed import listed, watching
from tests.stack import PHONE, SALON, SECRET, Stack, failure, message_request, rows, salon, webhook_body

OTHER_PHONE = "+4915112345679"
INSERT = "INSERT INTO message_changes (salon_id, type, message_id) VALUES (%s, %s, %s)"
CUSTOMER: dict[str, Any] = {"salon_id": SALON, "phone_number": PHONE}


def kinds(found: list[Any]) -> list[str]:
    """Return the types of changes, without their prefix."""
    return [pb.MessageChangeType.Name(change.type).removeprefix("MESSAGE_CHANGE_TYPE_") for change in found]


async def now_on(stack: Stack, **fields: Any) -> str:
    """Return the token of all changes from now on."""
    return (await stack.messaging.ListMessageChanges(pb.ListMessageChangesRequest(**fields))).next_page_token


async def ingest(stack: Stack, **items: Any) -> pb.IngestWebhookResponse:
    """Ingest a signed body of the salon."""
    payload = webhook_body(f"10{SALON}", **items)
    signature = "sha256=" + hmac.new(SECRET.encode(), payload, hashlib.sha256).hexdigest()
    return await stack.messaging.IngestWebhook(pb.IngestWebhookRequest(payload=payload, signature=signature))


def text(number: int, **fields: Any) -> dict[str, Any]:
    """Return a message of a webhook body."""
    item = {"id": f"wamid.{number}", "type": "text", "text": {"body": "hi"}, "timestamp": str(int(time.time()))}
    return {"from": PHONE[1:], **item, **fields}


async def outbound(stack: Stack, whatsapp_id: str, **fields: Any) -> pb.Message:
    """Record a template that was sent."""
    sent = {"direction": pb.MESSAGE_DIRECTION_OUTBOUND, "type": pb.MESSAGE_TYPE_TEMPLATE}
    return await stack.messaging.RecordMessage(message_request(whatsapp_id, **sent, **fields))


async def test_each_write_leaves_its_changes_in_order(stack: Stack) -> None:
    await salon(stack)
    messaging = stack.messaging
    first = await messaging.RecordMessage(message_request())
    sent = await outbound(stack, "wamid.2")
    status = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id="wamid.2", status=pb.MESSAGE_STATUS_READ)
    await messaging.RecordMessageStatus(status)
    closed = pb.CONVERSATION_STATUS_CLOSED
    await messaging.UpdateConversationStatus(pb.UpdateConversationStatusRequest(**CUSTOMER, status=closed))
    await messaging.AssignConversation(pb.AssignConversationRequest(**CUSTOMER, assignee="anna"))
    await messaging.TagConversation(pb.TagConversationRequest(**CUSTOMER, add_tags=["vip"]))
    await messaging.MarkConversationRead(pb.MarkConversationReadRequest(**CUSTOMER))
    found = await listed(messaging)
    assert kinds(found) == ["MESSAGE_CREATED"] * 2 + ["MESSAGE_UPDATED"] + ["CONVERSATION_UPDATED"] * 4
    assert [change.message_id for change in found] == [first.message_id, *[sent.message_id] * 2, *[""] * 4]
    assert {change.conversation_id for change in found} == {first.conversation_id}
    assert {change.salon_id for change in found} == {SALON}
    assert all(change.create_time.seconds for change in found)


async def test_what_changes_nothing_leaves_no_change(stack: Stack) -> None:
    await salon(stack)
    messaging = stack.messaging
    await messaging.RecordMessage(message_request())
    await messaging.MarkConversationRead(pb.MarkConversationReadRequest(**CUSTOMER))
    token = await now_on(stack)
    await messaging.RecordMessage(message_request())
    await messaging.MarkConversationRead(pb.MarkConversationReadRequest(**CUSTOMER))
    early = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id="wamid.9", status=pb.MESSAGE_STATUS_READ)
    await messaging.RecordMessageStatus(early)
    closed = message_request("", phone_number=OTHER_PHONE, direction=pb.MESSAGE_DIRECTION_OUTBOUND)
    assert (await failure(messaging.RecordMessage(closed))).reason == "SERVICE_WINDOW_CLOSED"
    assert await listed(messaging, page_token=token) == []


async def test_a_webhook_body_leaves_a_change_per_item_in_the_order_of_time(stack: Stack) -> None:
    await salon(stack)
    sent = await outbound(stack, "wamid.0")
    token, when = await now_on(stack), int(time.time()) - 100
    messages = [text(number, timestamp=str(when + number)) for number in range(1, 31)]
    status = {"id": "wamid.0", "status": "delivered", "timestamp": str(when)}
    await ingest(stack, messages=messages[::-1], statuses=[status])
    found = await listed(stack.messaging, page_token=token)
    assert kinds(found) == ["MESSAGE_CREATED"] * 30 + ["MESSAGE_UPDATED"]
    assert found[-1].message_id == sent.message_id
    shown = await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id=SALON))
    newest = {message.message_id: message.whatsapp_id for message in shown.messages}
    assert [newest[change.message_id] for change in found[:-1]] == [f"wamid.{number}" for number in range(1, 31)]
    await ingest(stack, messages=messages, statuses=[status])
    assert len(await listed(stack.messaging, page_token=token)) == 31


async def test_a_message_that_reopens_or_names_says_so(stack: Stack) -> None:
    await salon(stack)
    await ingest(stack, messages=[text(1)])
    closed = pb.CONVERSATION_STATUS_CLOSED
    await stack.messaging.UpdateConversationStatus(pb.UpdateConversationStatusRequest(**CUSTOMER, status=closed))
    token = await now_on(stack)
    contact = {"profile": {"name": "Zoë"}, "wa_id": PHONE[1:]}
    await ingest(stack, messages=[text(2)], contacts=[contact])
    assert sorted(kinds(await listed(stack.messaging, page_token=token))) == [
        *("CONVERSATION_UPDATED", "CUSTOMER_UPDATED", "MESSAGE_CREATED")
    ]
    token = await now_on(stack)
    await ingest(stack, messages=[text(3)], contacts=[contact])
    assert kinds(await listed(stack.messaging, page_token=token)) == ["MESSAGE_CREATED"]


async def test_erasure_changes_all_and_its_rows_name_nobody(stack: Stack) -> None:
    await salon(stack)
    await ingest(stack, messages=[text(1), text(2, **{"from": OTHER_PHONE[1:]})])
    mine = await stack.messaging.RecordMessage(message_request("wamid.3"))
    token = await now_on(stack)
    await stack.messaging.EraseCustomer(pb.EraseCustomerRequest(**CUSTOMER))
    found = await listed(stack.messaging, page_token=token)
    assert {change.conversation_id for change in found} == {mine.conversation_id}
    assert sorted(kinds(found)) == ["CONVERSATION_UPDATED", "CUSTOMER_UPDATED", *["MESSAGE_UPDATED"] * 2]
    kept = "".join(str(row) for row in rows(stack.database_url, "SELECT * FROM message_changes"))
    assert all(name not in kept for name in (PHONE[1:], "wamid", "Zoë"))


async def test_a_conversation_that_is_merged_says_so_for_both(stack: Stack) -> None:
    await salon(stack)
    await ingest(stack, messages=[text(1)])
    moved = await stack.messaging.RecordMessage(message_request("wamid.2", phone_number="", user_id="DE.2"))
    kept, merged = [change.conversation_id for change in await listed(stack.messaging)]
    token = await now_on(stack)
    both = await stack.messaging.RecordMessage(message_request("wamid.3", user_id="DE.2"))
    assert both.conversation_id == kept
    found = {
        (*kinds([change]), change.conversation_id, change.message_id)
        for change in await listed(stack.messaging, page_token=token)
    }
    assert found == {
        ("CONVERSATION_UPDATED", merged, ""),
        ("CUSTOMER_UPDATED", kept, ""),
        ("CUSTOMER_UPDATED", merged, ""),
        ("MESSAGE_UPDATED", kept, moved.message_id),
        ("MESSAGE_CREATED", kept, both.message_id),
    }


async def test_an_opt_out_and_a_new_number_say_so(stack: Stack) -> None:
    await salon(stack)
    token = await now_on(stack)
    customer = await stack.messaging.RecordOptOut(pb.RecordOptOutRequest(**CUSTOMER))
    found = await listed(stack.messaging, page_token=token)
    assert set(kinds(found)) == {"CUSTOMER_UPDATED"}
    assert {change.conversation_id for change in found} == {customer.customer_id}
    token = await now_on(stack)
    await stack.messaging.RecordMessage(message_request("wamid.1", user_id="DE.1"))
    assert "CUSTOMER_UPDATED" in kinds(await listed(stack.messaging, page_token=token))
    await stack.messaging.RecordOptOut(pb.RecordOptOutRequest(salon_id=SALON, phone_number="+4915100000009"))
    token = await now_on(stack)
    await stack.messaging.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, phone_number="+4915100000009"))
    assert kinds(await listed(stack.messaging, page_token=token)) == ["CUSTOMER_UPDATED"]


async def test_pages_of_any_size_have_each_change_once(stack: Stack) -> None:
    await salon(stack)
    await ingest(stack, messages=[text(number) for number in range(1, 12)])
    whole = await listed(stack.messaging)
    assert len({change.message_id for change in whole}) == len(whole) == 11
    for size in (1, 7, 11, 200):
        assert await listed(stack.messaging, page_size=size, salon_id=SALON) == whole
    assert await listed(stack.messaging, salon_id="unknown") == []


async def test_a_change_that_commits_after_a_later_one_is_not_lost(stack: Stack) -> None:
    ids = [str(uuid4()) for _ in range(3)]
    async with watching(stack.messaging) as watch:
        with psycopg.connect(stack.database_url) as slow, psycopg.connect(stack.database_url) as fast:
            slow.execute(INSERT, [SALON, "MESSAGE_CREATED", ids[0]])
            fast.execute(INSERT, [SALON, "MESSAGE_CREATED", ids[1]])
            fast.commit()
            assert await listed(stack.messaging) == []
            later = await now_on(stack)
            slow.commit()
        assert [change.message_id for change in await listed(stack.messaging, page_token=later)] == ids[:2]
        assert [change.message_id for change in await watch.changes(2)] == ids[:2]


async def test_changes_of_a_message_come_in_their_order(stack: Stack) -> None:
    """Also if the transaction that got its ID first changes the message last."""
    created, updated = str(uuid4()), str(uuid4())
    with psycopg.connect(stack.database_url) as early, psycopg.connect(stack.database_url) as late:
        for conn in (early, late):
            conn.execute("SELECT pg_current_xact_id()")
        late.execute(INSERT, [SALON, "MESSAGE_CREATED", created])
        late.commit()
        early.execute(INSERT, [SALON, "MESSAGE_UPDATED", updated])
        early.commit()
    assert [change.message_id for change in await listed(stack.messaging)] == [created, updated]


async def test_concurrent_writes_of_a_conversation_come_in_order(stack: Stack) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(message_request())
    requests = [pb.AssignConversationRequest(**CUSTOMER, assignee=f"user-{number}") for number in range(40)]
    await asyncio.gather(*map(stack.messaging.AssignConversation, requests))
    found = await listed(stack.messaging)
    times = [change.create_time.ToMicroseconds() for change in found if not change.message_id]
    assert len(times) == 40
    assert times == sorted(times)


async def test_a_watcher_gets_what_it_missed_and_then_what_comes(stack: Stack) -> None:
    await salon(stack)
    async with watching(stack.messaging, SALON) as watch:
        first = await stack.messaging.RecordMessage(message_request("wamid.1"))
        assert [change.message_id for change in await watch.changes(1)] == [first.message_id]
    missed = [await stack.messaging.RecordMessage(message_request(f"wamid.missed-{n}")) for n in range(3)]
    async with watching(stack.messaging, SALON, watch.token) as again, watching(stack.messaging, "other") as other:
        new = await stack.messaging.RecordMessage(message_request("wamid.new"))
        ids = [change.message_id for change in await again.changes(4)]
        assert ids == [message.message_id for message in [*missed, new]]
        rows(stack.database_url, "INSERT INTO message_changes (salon_id, type) VALUES ('other', 'MESSAGE_CREATED')"
             " RETURNING 1")  # fmt: skip
        assert [change.salon_id for change in await other.changes(1)] == ["other"]


async def test_a_token_of_the_other_feed_is_refused(stack: Stack) -> None:
    of_bookings = (await stack.booking.ListBookingChanges(booking_pb2.ListBookingChangesRequest())).next_page_token
    for token in (of_bookings, "nonsense", await now_on(stack, salon_id="other")):
        failed = await failure(stack.messaging.ListMessageChanges(pb.ListMessageChangesRequest(page_token=token)))
        assert (failed.reason, failed.fields) == ("INVALID_FIELD", ["page_token"])


@pytest.mark.parametrize("days", [9, 8.1])
async def test_changes_are_purged_after_their_tokens(stack: Stack, days: float) -> None:
    table = message_changes(stack.servers["messaging"].database).table
    old = f"INSERT INTO message_changes (salon_id, type, created_at) VALUES ('s', 'MESSAGE_CREATED', now() - interval '{days} days')"  # noqa: E501
    rows(stack.database_url, old + " RETURNING 1")
    await salon(stack)
    await stack.messaging.RecordMessage(message_request())
    async with stack.servers["messaging"].database.connection() as conn:
        assert await table.purge(conn) == 1
        assert await table.purge(conn) == 0
    assert len(await listed(stack.messaging)) == 1
