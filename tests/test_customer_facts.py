"""What WhatsApp says of customers besides messages: opt-outs, and names in the phone app's address book."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.kinds import body
from tests.stack import PHONE, SALON, Fields, Stack, failure, message_request, salon, warm, webhook_body
from tests.test_customers import assert_fresh, customer
from tests.test_webhook import ingest, text

NUMBER, USER, OTHER = PHONE[1:], "DE.1", "4915100000002"


def preference(value: str, at: int, **fields: Any) -> Fields:
    """Return an element of `user_preferences`."""
    detail = f"User requested to {value} marketing messages"
    item: Fields = {
        "wa_id": NUMBER,
        "detail": detail,
        "category": "marketing_messages",
        "value": value,
        "timestamp": at,
    }
    return {**item, **fields}


def contact(at: int | str, name: str = "", number: str = NUMBER, **fields: Any) -> Fields:
    """Return an element of `state_sync`: a removal without a name."""
    named = {"full_name": name, "first_name": name[:1]} if name else {}
    item: Fields = {
        "type": "contact",
        "contact": {**named, "phone_number": number},
        "action": "add" if name else "remove",
    }
    return {**item, "metadata": {"timestamp": str(at)}, **fields}


async def prefer(stack: Stack, *items: Any, **value: Any) -> dict[str, int]:
    """Ingest a body of the field user_preferences."""
    return await ingest(stack, body("1", "user_preferences", user_preferences=list(items), **value))


async def sync(stack: Stack, *items: Any) -> dict[str, int]:
    """Ingest a body of the field smb_app_state_sync."""
    return await ingest(stack, body("1", "smb_app_state_sync", state_sync=list(items)))


async def test_the_latest_choice_of_a_customer_counts(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    assert await prefer(stack, preference("stop", 2000)) == {"customers": 1}
    out = await customer(stack, phone_number=PHONE)
    assert (out.opted_out, out.opt_out_time.seconds, out.conversation_id) == (True, 2000, "")
    assert out.opt_out_reason == "User requested to stop marketing messages"
    assert await prefer(stack, preference("stop", 2000)) == {"duplicates": 1}
    assert await prefer(stack, preference("resume", 1000)) == {"duplicates": 1}
    assert await customer(stack, phone_number=PHONE) == out
    assert await prefer(stack, preference("stop", 3000), preference("resume", 4000)) == {
        "customers": 1,
        "duplicates": 1,
    }
    assert not (await customer(stack, phone_number=PHONE)).opted_out
    by_us: Fields = {"salon_id": SALON, "phone_number": PHONE, "event_time": {"seconds": 3500}}
    assert not (await stack.messaging.RecordOptOut(pb.RecordOptOutRequest(**by_us))).opted_out


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_choices_and_names_do_not_depend_on_the_order_of_delivery(stack: Stack, order: Any) -> None:
    await salon(stack, phone_number_id="1")
    for turn in order:
        await prefer(stack, preference(("stop", "resume", "stop")[turn], (1000, 2000, 2000)[turn]))
        await sync(stack, contact((1000, 2000, 2000)[turn], ("Old", "Zoe", "Ann")[turn]))
    found = await customer(stack, phone_number=PHONE)
    assert (found.opted_out, found.customer_name) == (True, "Zoe")


async def test_the_name_in_the_address_book_goes_before_that_of_the_profile(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    contacts = [{"profile": {"name": "~zoe~"}, "wa_id": NUMBER}]
    await ingest(stack, webhook_body("1", messages=[text(1, **{"from": NUMBER})], contacts=contacts))
    assert (await customer(stack, phone_number=PHONE)).customer_name == "~zoe~"
    assert await sync(stack, contact(2000, "Zoe H."), contact(2000, "Ben", OTHER)) == {"customers": 2}
    assert (await customer(stack, phone_number=PHONE)).customer_name == "Zoe H."
    found = await stack.messaging.ListCustomers(pb.ListCustomersRequest(salon_id=SALON, query="ben"))
    assert [list(one.phone_numbers) for one in found.customers] == [[f"+{OTHER}"]]
    assert await sync(stack, contact(3000), contact(3000, number="4915100000003")) == {"customers": 1, "duplicates": 1}
    assert (await customer(stack, phone_number=PHONE)).customer_name == "~zoe~"
    assert (await failure(customer(stack, phone_number="+4915100000003"))).reason == "CUSTOMER_NOT_FOUND"


async def test_a_choice_that_names_both_ids_joins_them(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await stack.messaging.RecordMessage(message_request("wamid.1"))
    await stack.messaging.RecordMessage(message_request("wamid.2", phone_number="", user_id=USER))
    who = [{"profile": {"name": "Zoe"}, "wa_id": NUMBER, "user_id": USER}]
    assert await prefer(stack, preference("stop", 2000), contacts=who) == {"customers": 1}
    found = await customer(stack, user_id=USER)
    assert (found.opted_out, list(found.phone_numbers)) == (True, [PHONE])
    assert found == await customer(stack, phone_number=PHONE)


async def test_no_reply_is_stale_after_what_is_said_of_a_customer(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await stack.messaging.RecordMessage(message_request("wamid.1"))
    calls: list[tuple[Any, Any]] = [
        (stack.messaging.GetCustomer, pb.GetCustomerRequest(salon_id=SALON, phone_number=PHONE)),
        (stack.messaging.ListCustomers, pb.ListCustomersRequest(salon_id=SALON)),
        (stack.messaging.ListCustomers, pb.ListCustomersRequest(salon_id=SALON, opted_out=True)),
    ]
    for write in (prefer(stack, preference("stop", 2000)), sync(stack, contact(2000, "Zoe", OTHER), contact(1, "Ann"))):
        before = [await warm(rpc, request) for rpc, request in calls]
        await write
        after = [await rpc(request) for rpc, request in calls]
        assert all(one != other for one, other in zip(before, after, strict=True))
        await assert_fresh(calls, after)


async def test_a_removal_from_the_address_book_counts_under_a_new_user_id(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    assert await sync(stack, contact(2000, "Zoe")) == {"customers": 1}
    gone = contact(3000)
    gone["contact"]["user_id"] = USER
    assert await sync(stack, gone) == {"customers": 1}
    found = await customer(stack, phone_number=PHONE)
    assert (found.customer_name, list(found.user_ids)) == ("", [])
    gone["contact"] = {"user_id": "DE.9"}
    assert await sync(stack, gone) == {"duplicates": 1}


WRONG_CHOICES: list[Any] = [
    preference("maybe", 1),
    preference("stop", 1, category="utility_messages"),
    preference("stop", 1, wa_id=None),
    preference("stop", 1, wa_id="me"),
    preference("stop", -1),
    preference("stop", 1, timestamp="soon"),
    preference("stop", 1, timestamp=True),
    "stop",
    None,
]
WRONG_CONTACTS: list[Any] = [
    contact(1, "Zoe", type="group"),
    contact(1, "Zoe", action="rename"),
    contact(1, "Zoe", contact="Zoe"),
    contact(1, "Zoe", ""),
    contact(1, "Zoe", "0151"),
    contact(1, "Zoe", metadata=None),
    contact("never", "Zoe"),
    [],
]


async def test_what_cannot_be_read_is_kept_and_the_rest_is_recorded(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    choices, contacts = len(WRONG_CHOICES), len(WRONG_CONTACTS)
    assert await prefer(stack, *WRONG_CHOICES, preference("stop", 2000)) == {"rejected": choices, "customers": 1}
    assert await sync(stack, *WRONG_CONTACTS, contact(1, "Zoe")) == {"rejected": contacts, "customers": 1}
    listed = await stack.messaging.ListWebhookFailures(pb.ListWebhookFailuresRequest(salon_id=SALON))
    failures = listed.webhook_failures
    assert len(failures) == choices + contacts
    assert {each.kind for each in failures} == {pb.WEBHOOK_ITEM_KIND_OTHER}


async def test_what_is_said_to_an_unknown_number_is_recorded_once_its_salon_exists(stack: Stack) -> None:
    assert await prefer(stack, preference("stop", 2000)) == {"rejected": 1}
    assert await sync(stack, contact(1, "Zoe")) == {"rejected": 1}
    await salon(stack, phone_number_id="1")
    replayed = await stack.messaging.ReplayWebhookFailures(pb.ReplayWebhookFailuresRequest())
    assert (replayed.customers, replayed.failures) == (2, 0)
    found = await customer(stack, phone_number=PHONE)
    assert (found.opted_out, found.customer_name) == (True, "Zoe")
