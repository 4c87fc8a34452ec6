"""A person is one customer with one conversation, under all the numbers and user IDs they have had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import grpc
import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import (
    PHONE,
    SALON,
    Fields,
    Stack,
    cached,
    failure,
    message_request,
    rows,
    running,
    salon,
    walk,
    warm,
    webhook_body,
)
from tests.test_webhook import ingest, text

OTHER, NEW = "+4915100000002", "+4915100000003"
USER, USER_2 = "DE.1", "DE.2"


async def record(stack: Stack, number: int, at: int = 0, **fields: Any) -> pb.Message:
    """Record an inbound message, sent `at` s after a fixed time."""
    request = message_request(f"wamid.{number}", **{"phone_number": "", **fields})
    request.send_time.seconds = 1_700_000_000 + (at or number)
    return await stack.messaging.RecordMessage(request)


async def customer(stack: Stack, **named: Any) -> pb.Customer:
    """Return a customer."""
    return await stack.messaging.GetCustomer(pb.GetCustomerRequest(salon_id=SALON, **named))


async def conversation(stack: Stack, **named: Any) -> pb.Conversation:
    """Return a conversation."""
    return await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=SALON, message_limit=50, **named))


def ids(found: pb.Conversation) -> list[str]:
    """Return the whatsapp_ids of a conversation's messages, oldest first."""
    return sorted(message.whatsapp_id for message in found.messages)


async def test_a_customer_has_names_and_all_ids(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    contacts = [{"profile": {"name": "Zoe"}, "wa_id": PHONE[1:], "user_id": USER}]
    message = text(1, **{"from": PHONE[1:], "from_user_id": USER, "timestamp": "1700000001"})
    await ingest(stack, webhook_body("1", messages=[message], contacts=contacts))
    found = await customer(stack, phone_number=PHONE)
    assert (found.customer_name, list(found.phone_numbers), list(found.user_ids)) == ("Zoe", [PHONE], [USER])
    assert found.customer_id == found.conversation_id == (await conversation(stack, user_id=USER)).conversation_id
    assert (found.first_seen_time.seconds, found.last_seen_time.seconds) == (1_700_000_001, 1_700_000_001)
    assert not found.opted_out and not found.HasField("opt_out_time")
    for named in (
        {"user_id": USER},
        {"customer_id": found.customer_id.upper()},
        {"phone_number": PHONE, "user_id": USER},
    ):
        assert await customer(stack, **named) == found
    for wrong in ({"user_id": "DE.9"}, {"phone_number": OTHER}, {"phone_number": PHONE, "user_id": "DE.9"}):
        error = await failure(customer(stack, **wrong))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "CUSTOMER_NOT_FOUND")


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_a_message_that_names_both_ids_merges_two_customers_in_any_order(stack: Stack, order: Any) -> None:
    await salon(stack)
    senders: list[Fields] = [{"phone_number": PHONE}, {"user_id": USER}, {"phone_number": PHONE, "user_id": USER}]
    for number in order:
        await record(stack, number + 1, **senders[number])
    for named in senders:
        found = await conversation(stack, **named)
        assert (found.phone_number, found.user_id, found.unread_count) == (PHONE, USER, 3)
        assert ids(found) == ["wamid.1", "wamid.2", "wamid.3"]
        listed = await stack.messaging.ListMessages(pb.ListMessagesRequest(salon_id=SALON, phone_number=PHONE))
        assert len(listed.messages) == 3
    assert rows(stack.database_url, "SELECT count(*) FROM conversations") == [(1,)]
    assert rows(stack.database_url, "SELECT count(*) FROM customers") == [(1,)]


async def test_a_merge_moves_what_belongs_to_the_conversation(stack: Stack) -> None:
    await salon(stack)
    first = (await record(stack, 1, phone_number=PHONE)).conversation_id
    second = (await record(stack, 2, user_id=USER)).conversation_id
    service = stack.messaging
    for found, tag in ((first, "vip"), (second, "new")):
        named: Fields = {"salon_id": SALON, "conversation_id": found}
        await service.TagConversation(pb.TagConversationRequest(**named, add_tags=[tag]))
        ai_message = pb.RecordAiMessageRequest(**named, model="m", role=pb.AI_ROLE_ASSISTANT, content=tag)
        await service.RecordAiMessage(ai_message)
    await service.AssignConversation(pb.AssignConversationRequest(**named, assignee="anna"))
    await record(stack, 3, phone_number=PHONE, user_id=USER)
    merged = await conversation(stack, conversation_id=second)
    assert (merged.conversation_id, list(merged.tags), merged.assignee) == (first, ["new", "vip"], "anna")
    ai_messages = (await service.ListAiMessages(pb.ListAiMessagesRequest(**named))).ai_messages
    assert [message.conversation_id for message in ai_messages] == [first, first]
    of_first = pb.ListAiMessagesRequest(salon_id=SALON, conversation_id=first)
    assert len((await warm(service.ListAiMessages, of_first)).ai_messages) == 2
    assert (await service.RecordAiMessage(ai_message)).conversation_id == first
    assert len((await service.ListAiMessages(of_first)).ai_messages) == 3
    assert (await customer(stack, customer_id=second)).customer_id == first
    marked = await service.MarkConversationRead(pb.MarkConversationReadRequest(**named))
    assert (marked.conversation_id, marked.unread_count) == (first, 0)


async def test_a_recycled_number_starts_a_new_customer(stack: Stack) -> None:
    await salon(stack)
    old = await record(stack, 1, phone_number=PHONE, user_id=USER)
    new = await record(stack, 2, phone_number=PHONE, user_id=USER_2)
    assert new.conversation_id != old.conversation_id
    assert (await conversation(stack, phone_number=PHONE)).conversation_id == new.conversation_id
    assert ids(await conversation(stack, user_id=USER)) == ["wamid.1"]
    assert (await customer(stack, user_id=USER)).phone_numbers == []
    late = await record(stack, 3, at=1, phone_number=PHONE, user_id=USER)
    assert (late.conversation_id, late.phone_number) == (old.conversation_id, "")
    assert (await customer(stack, user_id=USER_2)).phone_numbers == [PHONE]
    assert (await record(stack, 4, phone_number=PHONE)).conversation_id == new.conversation_id


@pytest.mark.parametrize("order", list(permutations(range(2))))
async def test_a_recycled_number_is_the_newer_user_s_in_any_order(stack: Stack, order: Any) -> None:
    await salon(stack)
    for number in order:
        await record(stack, number + 1, phone_number=PHONE, user_id=(USER, USER_2)[number])
    assert (await customer(stack, phone_number=PHONE)).user_ids == [USER_2]
    assert (await customer(stack, user_id=USER)).phone_numbers == []
    assert rows(stack.database_url, "SELECT count(*) FROM conversations") == [(2,)]


async def test_a_customer_s_new_number_is_theirs_and_the_old_one_still_finds_them(stack: Stack) -> None:
    await salon(stack)
    await record(stack, 1, phone_number=PHONE, user_id=USER)
    moved = await record(stack, 2, phone_number=NEW, user_id=USER)
    assert moved.phone_number == NEW
    for number in (PHONE, NEW):
        found = await conversation(stack, phone_number=number)
        assert (found.phone_number, ids(found)) == (NEW, ["wamid.1", "wamid.2"])
    assert (await customer(stack, user_id=USER)).phone_numbers == [NEW, PHONE]
    late = await record(stack, 3, at=1, phone_number=PHONE)
    assert (late.conversation_id, late.phone_number) == (moved.conversation_id, NEW)
    listed = pb.ListMessagesRequest(salon_id=SALON, phone_number=PHONE)
    assert len((await stack.messaging.ListMessages(listed)).messages) == 3


VARIANTS = {
    "Brazil": ("+5511987654321", "+551187654321"),
    "Brazil, a number that begins with 1": ("+5511912345678", "+551112345678"),
    "Mexico": ("+525512345678", "+5215512345678"),
    "Argentina": ("+5491112345678", "+541112345678"),
    "Argentina, inland": ("+5491112345678", "+54 11 15 1234-5678"),
}


@pytest.mark.parametrize("today, variant", list(VARIANTS.values()), ids=list(VARIANTS))
async def test_all_variants_of_a_number_name_one_customer_everywhere(stack: Stack, today: str, variant: str) -> None:
    await salon(stack, phone_number_id="1")
    await record(stack, 1, phone_number=variant)
    digits = "".join(filter(str.isdigit, variant)).replace("541115", "54911")
    await ingest(stack, webhook_body("1", messages=[text(2, **{"from": digits}), text(3, **{"from": today[1:]})]))
    assert rows(stack.database_url, "SELECT phone_number FROM conversations") == [(today,)]
    for number in (today, variant):
        assert ids(await conversation(stack, phone_number=number)) == ["wamid.1", "wamid.2", "wamid.3"]
        listed = pb.ListMessagesRequest(salon_id=SALON, phone_number=number)
        assert len((await stack.messaging.ListMessages(listed)).messages) == 3
        assert (await customer(stack, phone_number=number)).phone_numbers == [today]
    erased = await stack.messaging.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, phone_number=variant))
    assert erased.messages == 3


async def test_a_landline_of_brazil_keeps_its_digits(stack: Stack) -> None:
    await salon(stack)
    assert (await record(stack, 1, phone_number="+551132345678")).phone_number == "+551132345678"


def opt_out(**fields: Any) -> pb.RecordOptOutRequest:
    """Return a request of the salon."""
    return pb.RecordOptOutRequest(salon_id=SALON, **fields)


async def test_the_latest_opt_out_counts(stack: Stack) -> None:
    await salon(stack)
    await record(stack, 1, phone_number=PHONE, user_id=USER)
    out = await stack.messaging.RecordOptOut(opt_out(phone_number=PHONE, event_time={"seconds": 2000}, reason="STOP"))
    assert (out.opted_out, out.opt_out_time.seconds, out.opt_out_reason) == (True, 2000, "STOP")
    late = await stack.messaging.RecordOptOut(opt_out(user_id=USER, event_time={"seconds": 1000}, opted_in=True))
    assert late == out
    back = await stack.messaging.RecordOptOut(opt_out(customer_id=out.customer_id, opted_in=True))
    assert (back.opted_out, back.opt_out_reason, back.HasField("opt_out_time")) == (False, "", True)
    far = await stack.messaging.RecordOptOut(opt_out(user_id=USER, event_time={"seconds": 200_000_000_000}))
    assert far.opted_out and far.opt_out_time.seconds < 100_000_000_000
    assert await customer(stack, phone_number=PHONE) == far


async def test_an_opt_out_makes_a_number_a_customer(stack: Stack) -> None:
    await salon(stack)
    request = opt_out(phone_number=PHONE, request_id="once")
    out = await stack.messaging.RecordOptOut(request)
    assert (list(out.phone_numbers), out.conversation_id) == ([PHONE], "")
    assert not out.HasField("first_seen_time")
    assert await stack.messaging.RecordOptOut(request) == out
    assert (await failure(conversation(stack, phone_number=PHONE))).reason == "CONVERSATION_NOT_FOUND"
    message = await record(stack, 1, phone_number=PHONE)
    assert message.conversation_id == out.customer_id
    found = await customer(stack, phone_number=PHONE)
    assert (found.opted_out, found.conversation_id) == (True, out.customer_id)
    mistakes: list[tuple[Fields, str]] = [
        ({"customer_id": "00000000-0000-4000-8000-000000000000"}, "CUSTOMER_NOT_FOUND"),
        ({"salon_id": "nobody", "phone_number": PHONE}, "SALON_NOT_FOUND"),
    ]
    for wrong, reason in mistakes:
        error = await failure(stack.messaging.RecordOptOut(pb.RecordOptOutRequest(**{"salon_id": SALON, **wrong})))
        assert error.reason == reason


async def test_customers_are_listed_with_filters(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    numbers = [f"+49151000000{number:02}" for number in range(8)]
    for number, phone in enumerate(numbers):
        contacts = [{"profile": {"name": f"Anna_{number} Ö%"}, "wa_id": phone[1:]}]
        await ingest(stack, webhook_body("1", messages=[text(number, **{"from": phone[1:]})], contacts=contacts))
    for phone in numbers[::2]:
        await stack.messaging.RecordOptOut(opt_out(phone_number=phone))
    newest = numbers[::-1]

    async def listed(**filters: Any) -> list[str]:
        request = pb.ListCustomersRequest(salon_id=SALON, **filters)
        return [found.phone_numbers[0] for found in await walk(stack.messaging.ListCustomers, request, 3)]

    assert await listed() == newest
    assert await listed(opted_out=True) == newest[1::2]
    assert await listed(opted_out=False) == newest[::2]
    assert await listed(query="anna_") == newest
    assert await listed(query="a_3") == [numbers[3]]
    assert await listed(query="ö%") == newest
    assert await listed(query="+49 151 000000-0") == newest
    assert await listed(query="0049151000000 05") == [numbers[5]]
    assert await listed(query="15100000005") == []
    assert await listed(query="nobody") == []
    assert await listed(query="2", opted_out=True) == [numbers[2]]
    other = pb.ListCustomersRequest(salon_id="salon-2")
    assert list((await stack.messaging.ListCustomers(other)).customers) == []


async def shown(rpc: Any, request: Any, **options: Any) -> str:
    """Return the reply of a read as text."""
    try:
        return str(await rpc(request, **options))
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND
        return "nothing"


async def assert_fresh(everything: list[tuple[Any, Any]], written: object) -> None:
    """Check that each read returns what it returns without the cache."""
    for rpc, request in everything:
        after = await shown(rpc, request)
        assert after == await shown(rpc, request, metadata=(("cache-control", "no-cache"),)), (written, request)


async def reads(stack: Stack, customer_ids: Sequence[str] = ()) -> list[tuple[Any, Any]]:
    """Return cached reads of two customers, also by `customer_ids`."""
    service = stack.messaging
    of_salon: Fields = {"salon_id": SALON}
    names: list[Fields] = [{"phone_number": PHONE}, {"phone_number": NEW}, {"user_id": USER}, {"user_id": USER_2}]
    found: list[tuple[Any, Any]] = []
    for named in names:
        found.append((service.GetCustomer, pb.GetCustomerRequest(**of_salon, **named)))
        found.append((service.GetConversation, pb.GetConversationRequest(**of_salon, **named)))
    for phone in (PHONE, NEW):
        found.append((service.ListMessages, pb.ListMessagesRequest(**of_salon, phone_number=phone)))
    for one in customer_ids:
        found.append((service.GetCustomer, pb.GetCustomerRequest(**of_salon, customer_id=one)))
        found.append((service.GetConversation, pb.GetConversationRequest(**of_salon, conversation_id=one)))
        found.append((service.ListMessages, pb.ListMessagesRequest(**of_salon, conversation_id=one)))
        found.append((service.ListAiMessages, pb.ListAiMessagesRequest(**of_salon, conversation_id=one)))
    found.append((service.ListCustomers, pb.ListCustomersRequest(**of_salon)))
    found.append((service.ListCustomers, pb.ListCustomersRequest(**of_salon, opted_out=True)))
    return [*found, (service.ListConversations, pb.ListConversationsRequest(**of_salon))]


def changes() -> Iterator[tuple[str, list[Fields]]]:
    """Yield ways in which two customers become one, or change, as messages after one from each."""
    both = {"phone_number": PHONE, "user_id": USER_2}
    yield "merged", [both]
    yield "new number", [{"phone_number": NEW, "user_id": USER_2}]
    yield "new number, then by the old one", [both, {"phone_number": NEW, "user_id": USER_2}, {"phone_number": PHONE}]
    yield "recycled", [{"phone_number": PHONE, "user_id": USER}, both]


@pytest.mark.parametrize("messages", [messages for _, messages in changes()], ids=[name for name, _ in changes()])
async def test_no_reply_is_stale_after_a_change_of_identities(stack: Stack, messages: list[Fields]) -> None:
    await salon(stack)
    await record(stack, 1, phone_number=PHONE)
    await record(stack, 2, user_id=USER_2)

    everything = await reads(stack)
    for number, named in enumerate([*messages, {"phone_number": PHONE}], 3):
        for _ in range(2):
            for rpc, request in everything:
                await shown(rpc, request)
            await stack.servers["messaging"].cache.settle()
        await record(stack, number, **named)
        await assert_fresh(everything, named)
    opt = opt_out(phone_number=PHONE)
    for rpc, request in everything:
        await shown(rpc, request)
    await stack.servers["messaging"].cache.settle()
    await stack.messaging.RecordOptOut(opt)
    await assert_fresh(everything, "opt-out")


@pytest.mark.parametrize("merged", [False, True], ids=["two numbers", "merged"])
@pytest.mark.parametrize("writer", [{"phone_number": PHONE}, {"user_id": USER}], ids=["by a former number", "by user"])
async def test_no_reply_is_stale_after_the_first_message_of_a_known_customer(
    stack: Stack, writer: Fields, merged: bool
) -> None:
    await salon(stack)
    named: list[Fields] = [{"phone_number": PHONE}, {"phone_number": NEW}]
    found = [await stack.messaging.RecordOptOut(opt_out(**each, event_time={"seconds": 1})) for each in named * merged]
    for second, each in enumerate(named, 2):
        await stack.messaging.RecordOptOut(opt_out(**each, user_id=USER, event_time={"seconds": second}))
    assert list((await customer(stack, user_id=USER)).phone_numbers) == [NEW, PHONE]
    everything = await reads(stack, [one.customer_id for one in found])
    for rpc, request in everything * 2:
        await shown(rpc, request)
        await stack.servers["messaging"].cache.settle()
    await record(stack, 3, **writer)
    await assert_fresh(everything, writer)


async def test_a_current_name_is_read_from_the_cache_and_a_former_one_is_not(stack: Stack) -> None:
    await salon(stack)
    await record(stack, 1, phone_number=PHONE, user_id=USER)
    await record(stack, 2, phone_number=NEW, user_id=USER)
    calls: list[tuple[Any, Any]] = [
        (pb.GetConversationRequest(salon_id=SALON, phone_number=NEW), stack.messaging.GetConversation),
        (pb.GetCustomerRequest(salon_id=SALON, phone_number=NEW), stack.messaging.GetCustomer),
        (pb.ListMessagesRequest(salon_id=SALON, phone_number=NEW), stack.messaging.ListMessages),
    ]
    for request, rpc in calls:
        await warm(rpc, request)
        request.phone_number = PHONE
        for _ in range(3):
            _, source = await cached(rpc(request))
            await stack.servers["messaging"].cache.settle()
            assert source == "miss"


async def test_conversations_of_processes_of_0_3_have_a_customer(stack: Stack) -> None:
    """They know no customers while both releases run, and name the unique index of user IDs."""
    await salon(stack)
    insert = (
        "INSERT INTO conversations AS c (salon_id, phone_number, user_id) VALUES ('{}', {}, {}) ON CONFLICT"
        " (salon_id, user_id) WHERE phone_number IS NULL DO UPDATE SET revision = c.revision + 1"
        " RETURNING conversation_id::text"
    )
    users = "NULL", f"'{USER}'"
    [[by_number]] = rows(stack.database_url, insert.format(SALON, f"'{PHONE}'", "NULL"))
    [[by_user]] = rows(stack.database_url, insert.format(SALON, *users))
    assert rows(stack.database_url, insert.format(SALON, *users)) == [(by_user,)]
    assert (await record(stack, 1, phone_number=PHONE)).conversation_id == by_number
    assert (await record(stack, 2, user_id=USER)).conversation_id == by_user
    update = f"UPDATE conversations SET user_id = '{USER_2}' WHERE phone_number = '{PHONE}' RETURNING 1"
    assert rows(stack.database_url, update) == [(1,)]
    assert (await record(stack, 3, user_id=USER_2)).conversation_id == by_number
    assert (await customer(stack, phone_number=PHONE)).user_ids == [USER_2]
    assert ids(await conversation(stack, phone_number=PHONE)) == ["wamid.1", "wamid.3"]


@pytest.mark.parametrize(
    "phone, variant", [(PHONE, PHONE), ("+525512345678", "+5215512345678")], ids=["same", "Mexico"]
)
async def test_a_conversation_of_0_3_is_that_of_the_customer_whose_opt_out_is_known(
    stack: Stack, phone: str, variant: str
) -> None:
    await salon(stack)
    await stack.messaging.RecordOptOut(opt_out(phone_number=phone))
    insert = f"INSERT INTO conversations (salon_id, phone_number) VALUES ('{SALON}', '{variant}')"
    [[begun]] = rows(stack.database_url, f"{insert} RETURNING conversation_id::text")
    assert (await record(stack, 1, phone_number=phone)).conversation_id == begun
    found = await customer(stack, phone_number=phone)
    assert (found.customer_id, found.conversation_id, found.opted_out) == (begun, begun, True)
    assert rows(stack.database_url, "SELECT count(*) FROM customers") == [(1,)]


async def test_a_customer_without_identities_can_opt_out_and_is_erased(stack: Stack) -> None:
    """As if a process of 0.3 began a conversation with a number that a customer had before."""
    await salon(stack)
    await record(stack, 1, phone_number=PHONE, user_id=USER)
    await record(stack, 2, phone_number=NEW, user_id=USER)
    for column, value in (("phone_number", PHONE), ("user_id", USER)):
        insert = f"INSERT INTO conversations (salon_id, {column}) VALUES ('{SALON}', '{value}')"
        [[begun]] = rows(stack.database_url, f"{insert} RETURNING conversation_id::text")
        out = await stack.messaging.RecordOptOut(opt_out(customer_id=begun, reason="STOP"))
        assert (out.customer_id, out.opted_out, list(out.phone_numbers)) == (begun, True, [])
        again = await stack.messaging.RecordOptOut(opt_out(customer_id=begun, opted_in=True))
        assert not again.opted_out
        named: Fields = {column: value}
        erased = await stack.messaging.EraseCustomer(pb.EraseCustomerRequest(salon_id=SALON, **named))
        assert erased.conversations == (2 if column == "phone_number" else 1)
    query = "SELECT count(*) FROM conversations WHERE phone_number IS NOT NULL OR user_id IS NOT NULL"
    assert rows(stack.database_url, query) == [(0,)]
    assert rows(stack.database_url, "SELECT count(*) FROM customers") == [(0,)]


@pytest.mark.parametrize("ahead", [{"phone_number": NEW, "user_id": USER}, {"user_id": USER}], ids=["both", "user"])
async def test_a_time_in_the_future_does_not_keep_a_customer_s_names(stack: Stack, ahead: Fields) -> None:
    """A clock that was wrong once must not decide for good what the newest number, user ID and name are."""
    await salon(stack, phone_number_id="1")
    contacts = [{"profile": {"name": "Zoe"}, "wa_id": NEW[1:], "user_id": USER}]
    sender: Fields = {"from_user_id": USER} | ({"from": NEW[1:]} if "phone_number" in ahead else {})
    await ingest(stack, webhook_body("1", messages=[text(1, **sender, timestamp="4000000000")], contacts=contacts))
    future = "SELECT count(*) FROM {} WHERE {} > now()"
    assert rows(stack.database_url, future.format("customer_identities", "seen_at")) == [(0,)]
    assert rows(stack.database_url, future.format("conversations", "customer_named_at")) == [(0,)]
    for number, phone in ((2, PHONE), (3, OTHER)):
        request = message_request(f"wamid.{number}", phone_number=phone, user_id=USER)
        request.send_time.GetCurrentTime()
        await stack.messaging.RecordMessage(request)
        assert (await conversation(stack, user_id=USER)).phone_number == phone
    assert rows(stack.database_url, future.format("customer_identities", "seen_at")) == [(0,)]


@pytest.mark.parametrize("kind", ["phone_number", "user_id"])
async def test_who_returns_to_a_former_number_has_it_again(stack: Stack, kind: str) -> None:
    await salon(stack)
    former: Fields = {"phone_number": PHONE, "user_id": USER}
    newer: Fields = former | {kind: {"phone_number": NEW, "user_id": USER_2}[kind]}
    for number, named in enumerate((former, newer), 1):
        await record(stack, number, **named)
    everything = await reads(stack)
    for number, named in ((3, former), (4, newer), (5, newer), (6, former)):
        for rpc, request in everything * 2:
            await shown(rpc, request)
            await stack.servers["messaging"].cache.settle()
        assert (await record(stack, number, **named)).phone_number == named["phone_number"]
        found = await conversation(stack, phone_number=PHONE)
        assert {"phone_number": found.phone_number, "user_id": found.user_id} == named
        await assert_fresh(everything, named)
    late = await record(stack, 7, at=1, **newer)
    assert late.phone_number == (PHONE if kind == "phone_number" else "")  # two customers, who exchange a number
    assert (await conversation(stack, phone_number=PHONE)).user_id == USER


async def test_an_opt_out_of_a_known_customer_needs_no_booking_service(
    stack: Stack, database_url: str, redis_url: str
) -> None:
    await salon(stack)
    await record(stack, 1, phone_number=PHONE, user_id=USER)
    async with running(database_url, redis_url) as restarted:
        await restarted.servers["booking"].drain()
        for named in ({"phone_number": PHONE}, {"user_id": USER}, {"phone_number": NEW, "user_id": USER}):
            out = await restarted.messaging.RecordOptOut(opt_out(**named))
            assert out.opted_out
        error = await failure(restarted.messaging.RecordOptOut(opt_out(phone_number=OTHER)))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "BOOKING_UNAVAILABLE")
