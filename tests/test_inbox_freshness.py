"""Every change of a row of the inbox, a message or a search is seen by the next read; no cached reply is stale."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.kinds import body
from tests.stack import PHONE, SALON, Fields, Stack, message_request, salon, warm
from tests.test_kinds import CASES, CUSTOMER, FIRST, NUMBER_ID
from tests.test_message_sends import failed, pending, sent
from tests.test_webhook import ingest, text

FRESH = (("cache-control", "no-cache"),)
INBOX: list[Fields] = [
    {},
    {"unread_only": True},
    {"window_open": True},
    {"window_open": False},
    {"statuses": [pb.CONVERSATION_STATUS_CLOSED]},
    {"unassigned": True, "tags_any": ["vip"]},
    {"query": CUSTOMER[:5]},
]

# The rows have no reactions, and an edit that comes before its message is kept.
UNSEEN = {"an edit before its message", "a reaction in a group", "a reaction by the salon"}


async def replies(stack: Stack, salon_id: str, *, cached: bool) -> list[Any]:
    """Return the replies of the lists of a salon, from the cache if they are `cached`."""
    service = stack.messaging
    reads: list[tuple[Any, Any]] = [
        (service.ListMessages, pb.ListMessagesRequest(salon_id=salon_id)),
        (service.SearchMessages, pb.SearchMessagesRequest(salon_id=salon_id, query="hi")),
        *((service.ListConversations, pb.ListConversationsRequest(salon_id=salon_id, **filters)) for filters in INBOX),
    ]
    if cached:
        return [await warm(*read) for read in reads]
    return [await rpc(request, metadata=FRESH) for rpc, request in reads]


async def is_seen(stack: Stack, salon_id: str, write: Callable[[], Awaitable[Any]]) -> bool:
    """Cache the lists, write, and return whether a row of the inbox has changed; no reply may be stale."""
    before = await replies(stack, salon_id, cached=True)
    await write()
    now = await replies(stack, salon_id, cached=True)
    assert now == await replies(stack, salon_id, cached=False)
    return bool(now[2] != before[2])


@pytest.mark.parametrize("kind", CASES)
async def test_a_webhook_item_of_each_kind_is_seen_in_the_inbox(stack: Stack, kind: str) -> None:
    payload, *_ = CASES[kind]
    await salon(stack, SALON, phone_number_id=SALON)
    await ingest(stack, body(SALON, "messages", messages=[text(1, timestamp=str(FIRST))]))
    seen = await is_seen(stack, SALON, lambda: ingest(stack, payload.replace(NUMBER_ID, SALON.encode())))
    assert seen == (kind not in UNSEEN)


async def test_each_write_of_a_caller_is_seen_in_the_inbox(stack: Stack) -> None:
    service = stack.messaging
    await salon(stack)
    first = await service.RecordMessage(message_request())
    one = await pending(stack, send_time={"seconds": 4_000_000_000})
    assert await is_seen(stack, SALON, lambda: failed(stack, one.message_id, error_code=1))
    other = await pending(stack, send_time={"seconds": 4_000_000_001})
    named: Fields = {"salon_id": SALON, "phone_number": PHONE}
    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: sent(stack, other.message_id),
        lambda: service.MarkConversationRead(
            pb.MarkConversationReadRequest(**named, up_to_message_id=first.message_id)
        ),
        lambda: service.AssignConversation(pb.AssignConversationRequest(**named, assignee="anna")),
        lambda: service.TagConversation(pb.TagConversationRequest(**named, add_tags=["vip"])),
        lambda: service.UpdateConversationStatus(
            pb.UpdateConversationStatusRequest(**named, status=pb.CONVERSATION_STATUS_CLOSED)
        ),
        lambda: service.RecordMessageStatus(
            pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id="wamid.sent", status=pb.MESSAGE_STATUS_READ)
        ),
        lambda: service.RecordMessage(message_request("wamid.moved", phone_number="+4915100000099", user_id="US.1")),
        lambda: service.RecordMessage(message_request("wamid.both", user_id="US.1")),  # merges two customers
        lambda: service.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, phone_number=PHONE)),
    ]
    for number, write in enumerate(writes):
        assert await is_seen(stack, SALON, write), number
