"""Times of the future, texts that can't be stored, details of statuses: what is odd does not hide a message."""

import time
from typing import Any

import pytest

from parlor.messaging.v1 import messaging_pb2 as pb
from services.messaging.webhook.details import read_details
from services.messaging.webhook.json_scanner import HugeNumber
from tests.kinds import PERSON, Item, body, call, echo, edit, message, past, reaction
from tests.stack import SALON, Stack, message_request, rows, salon, webhook_body
from tests.test_webhook import ingest, status, text

SHEENA = f"+{PERSON}"
SECOND = 1_749_416_383
FUTURE = [str(2**31), "253370764800", "9" * 30, 253_370_764_799, str(int(time.time()) + 4_000)]


async def get(stack: Stack, whatsapp_id: str) -> pb.Message:
    return await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id=whatsapp_id))


async def test_a_time_of_the_future_is_replaced_by_that_of_the_arrival_and_marked(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    before = int(time.time())
    for place, timestamp in enumerate(FUTURE):
        names = [f"wamid.{place}.{kind}" for kind in ("text", "echo", "call", "image")]
        odd = [
            webhook_body("1", messages=[text(id=names[0], timestamp=timestamp)]),
            body("1", "smb_message_echoes", message_echoes=[echo(names[1], SECOND, timestamp=timestamp)]),
            body("1", "calls", calls=[call(names[2], "connect", SECOND, timestamp=timestamp)]),
            webhook_body("1", messages=[message(names[3], "image", SECOND, {"id": "7"}, timestamp=timestamp)]),
        ]
        for one in odd:
            assert await ingest(stack, one) == {"messages": 1}
        for name in names:
            found = await get(stack, name)
            assert found.time_adjusted
            assert before <= found.create_time.seconds <= time.time()
    await ingest(stack, webhook_body("1", messages=[text(5, timestamp=str(before - 60))]))
    assert not (await get(stack, "wamid.5")).time_adjusted
    shown = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=SALON, phone_number=SHEENA))
    assert shown.last_message_time.seconds <= time.time()


async def test_a_clock_that_is_fast_by_less_than_10_minutes_is_believed(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    soon = int(time.time()) + 300
    await ingest(stack, webhook_body("1", messages=[text(1, timestamp=str(soon)), text(2, timestamp=soon)]))
    for name in ("wamid.1", "wamid.2"):
        found = await get(stack, name)
        assert (found.create_time.seconds, found.time_adjusted) == (soon, False)


async def test_a_status_of_the_future_counts_from_its_arrival_and_its_repeat_is_a_duplicate(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await stack.messaging.RecordMessage(
        message_request("wamid.1", type=pb.MESSAGE_TYPE_TEMPLATE, direction=pb.MESSAGE_DIRECTION_OUTBOUND)
    )
    late = webhook_body("1", statuses=[status(1, status="delivered", timestamp="253370764800")])
    assert await ingest(stack, late) == {"statuses": 1}
    assert await ingest(stack, late) == {"duplicates": 1}
    assert await ingest(stack, webhook_body("1", statuses=[status(1)])) == {"statuses": 1}
    found = await get(stack, "wamid.1")
    assert found.status == pb.MESSAGE_STATUS_READ
    assert [one.time_adjusted for one in found.status_events] == [False, True]


async def test_what_is_said_of_a_customer_in_the_future_was_so_when_it_came(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    both = {"phone_number": PERSON, "user_id": "US.1", "full_name": "Sheena"}
    for timestamp in FUTURE:
        saved = {"type": "contact", "contact": both, "action": "add", "metadata": {"timestamp": timestamp}}
        choice = {"wa_id": PERSON, "user_id": "US.1", "category": "marketing_messages", "value": "stop"}
        await ingest(stack, body("1", "smb_app_state_sync", state_sync=[saved]))
        await ingest(stack, body("1", "user_preferences", user_preferences=[{**choice, "timestamp": timestamp}]))
    assert rows(stack.database_url, "SELECT count(*), max(seen_at) <= now() FROM customer_identities") == [(2, True)]
    soon = int(time.time()) + 60  # later than what was said, and not too far in the future
    other = {"from": PERSON, "from_user_id": "US.2", "timestamp": str(soon)}  # the number has passed on
    await ingest(stack, webhook_body("1", messages=[text(1, **other)]))
    found = await stack.messaging.GetCustomer(pb.GetCustomerRequest(salon_id=SALON, user_id="US.2"))
    assert list(found.phone_numbers) == [SHEENA]


async def test_what_is_no_time_is_kept_as_a_failure(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    odd_times: list[Any] = [True, False, "soon", -1, 1.5, [], None]
    for place, timestamp in enumerate(odd_times):
        odd: Item = {"id": f"wamid.{place}", "timestamp": timestamp}
        messages = webhook_body("1", messages=[text(**odd), text(id=f"wamid.good.{place}")])
        assert await ingest(stack, messages) == {"messages": 1, "rejected": 1}
        chunk = {"threads": [{"id": PERSON, "messages": [{**past("x", SECOND), **odd}]}]}
        assert await ingest(stack, body("1", "history", history=[chunk])) == {"rejected": 1}
        one = {**call("x", "connect", SECOND), **odd}
        assert await ingest(stack, body("1", "calls", calls=[one])) == {"rejected": 1}
    kept = await stack.messaging.ListWebhookFailures(pb.ListWebhookFailuresRequest(salon_id=SALON))
    assert len(kept.webhook_failures) == 21
    assert all(one.reason.startswith("timestamp: ") for one in kept.webhook_failures)


@pytest.mark.parametrize("half", ["\ud83d", "\udc87", "\0"])
async def test_what_can_not_be_stored_of_a_text_becomes_u_fffd(stack: Stack, half: str) -> None:
    await salon(stack, phone_number_id="1")
    odd = f"a{half}b"
    items = [
        text(1, text={"body": odd}),
        message("wamid.2", "image", SECOND, {"id": "7", "caption": odd}),
        message("wamid.3", "location", SECOND, {"latitude": 1, "longitude": 2, "name": odd}),
        message("wamid.4", "button", SECOND, {"payload": odd, "text": odd}),
        message("wamid.5", "contacts", SECOND, [{"name": {"formatted_name": odd}}]),
        reaction("wamid.6", "wamid.1", SECOND, odd),
        text(7, referral={"body": odd}),
        message("wamid.9", "interactive", SECOND, {"type": odd, odd: {"id": odd, "title": odd}}),
        message("wamid.10", "system", SECOND, {"type": odd, "body": odd}),
    ]
    contacts = [{"wa_id": PERSON, "profile": {"name": odd}}]
    assert await ingest(stack, webhook_body("1", messages=items, contacts=contacts)) == {"messages": 9}
    clean = "a\ufffdb"
    first, second, third, fourth, fifth, seventh, ninth, tenth = [
        await get(stack, f"wamid.{number}") for number in (1, 2, 3, 4, 5, 7, 9, 10)
    ]
    assert (first.content, first.reactions[0].emoji, second.content) == (clean, clean, clean)
    assert (third.location.name, fourth.interactive_reply.id, fifth.contacts[0].name) == (clean, clean, clean)
    assert (seventh.referral.body, tenth.system.kind) == (clean, clean)
    assert ninth.interactive_reply == pb.InteractiveReply(kind=clean, id=clean, title=clean)
    await ingest(stack, webhook_body("1", messages=[edit("wamid.8", "wamid.2", SECOND + 1, odd)]))
    assert (await get(stack, "wamid.2")).content == clean
    shown = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=SALON, phone_number=SHEENA))
    assert shown.customer_name == clean


async def test_details_of_statuses_are_kept_in_the_message_and_its_events(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    sent = message_request("wamid.1", type=pb.MESSAGE_TYPE_TEMPLATE, direction=pb.MESSAGE_DIRECTION_OUTBOUND)
    await stack.messaging.RecordMessage(sent)
    error = {"code": 131026, "title": "Undeliverable", "error_data": {"details": "No such\0number"}}
    pricing = {"billable": True, "category": "utility", "type": "regular", "pricing_model": "PMP"}
    items = [
        status(1, status="sent", pricing=pricing, biz_opaque_callback_data="campaign-7"),
        status(1, status="failed", timestamp="1749416390", errors=[error]),
    ]
    assert await ingest(stack, webhook_body("1", statuses=items)) == {"statuses": 2}
    found = await get(stack, "wamid.1")
    for one in (found, found.status_events[1]):
        assert (one.error_code, one.error_title, one.error_details) == (131026, "Undeliverable", "No such\ufffdnumber")
    for priced in (found, found.status_events[0]):
        assert (priced.pricing_type, priced.pricing_model) == ("regular", "PMP")
        assert priced.biz_opaque_callback_data == "campaign-7"
    odd: list[Item] = [{"errors": 7}, {"errors": [7]}, {"errors": [{"error_data": 7}]}, {"pricing": {"type": {}}}]
    odd += [{"biz_opaque_callback_data": 7}, {"errors": [{"error_data": {"details": "x" * 5_000}}]}]
    statuses = [status(2, timestamp=str(SECOND + place), **fields) for place, fields in enumerate(odd)]
    assert await ingest(stack, webhook_body("1", statuses=statuses)) == {"statuses": len(odd)}


ODD: list[Item] = [
    {"type": "location", "location": {"latitude": "north", "longitude": True, "name": 7}},
    {"type": "location", "location": {"latitude": 1e400, "longitude": 181}},
    {"type": "location", "location": [1, 2]},
    {"type": "order", "order": {"product_items": 7}},
    {"type": "order", "order": {"product_items": [7, {}, {"product_retailer_id": ""}]}},
    {"type": "contacts", "contacts": {"name": "Ann"}},
    {"type": "contacts", "contacts": [7, {}, {"name": {}, "phones": [7, {"phone": 7}]}]},
    {"type": "interactive", "interactive": {"type": "list_reply", "list_reply": 7}},
    {"type": "interactive", "interactive": {"type": 7}},
    {"type": "interactive", "interactive": 7},
    {"type": "button", "button": 7},
    {"type": "system", "system": {"type": 7}},
    {"type": "text", "referral": 7},
    {"type": "text", "referral": {"headline": 7}},
    {"type": "text", "context": {"referred_product": 7}},
    {"type": 7},
]


@pytest.mark.parametrize("item", ODD, ids=str)
def test_details_of_another_shape_are_left_out(item: Item) -> None:
    assert read_details(item) is None


def test_details_that_can_be_read_stay_beside_others_and_lists_are_limited() -> None:
    location = {"latitude": 12.5, "longitude": "x", "name": "Salon"}
    assert read_details({"type": "location", "location": location}) == {"location": {"latitude": 12.5, "name": "Salon"}}
    products = [{"product_retailer_id": "p", "quantity": 2**40, "item_price": price} for price in ("x", -1, None)]
    order = {"catalog_id": "c", "product_items": products * 100}
    details = read_details({"type": "order", "order": order})
    assert details == {"order": {"catalog_id": "c", "items": [{"product_retailer_id": "p"}] * 100}}
    form: Any = {"type": "nfm_reply", "nfm_reply": {"name": "flow", "response_json": {"a": [1]}}}
    assert read_details({"type": "interactive", "interactive": form}) == {
        "interactive_reply": {"kind": "nfm_reply", "title": "flow", "flow_json": '{"a": [1]}'}
    }
    form["nfm_reply"]["response_json"] = {"a": HugeNumber("1e999")}
    huge = read_details({"type": "interactive", "interactive": form})
    assert huge and huge["interactive_reply"]["flow_json"] == '{"a": "1e999"}'
