"""Bodies of every kind that WhatsApp documents are stored once with all their fields, in any order of arrival."""

import itertools
import json
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import SALON, Fields, Stack, message_request, rows, salon
from tests.test_webhook import ingest
from tests.whatsapp import BODIES, CASES, PHONE_NUMBER_ID, first_time, items, messages, names_salon, payload
from tests.whatsapp_cases import ANA_ID, MIKA_ID, NINA, OWN, PABLO, PABLO_ID, SHEENA

TABLES = (
    "conversations messages raw_messages message_amendments message_status_events webhook_failures customers"
    " customer_identities message_changes"
).split()
_numbers = itertools.count()
_in_order: dict[str, Any] = {}


def sent() -> list[str]:
    """Return the IDs of the messages that have statuses."""
    return sorted({status["id"] for name in CASES for status in items(name, "statuses")})


async def record(stack: Stack, salon_id: str, whatsapp_id: str) -> pb.Message:
    """Record a message sent by the salon to Sheena."""
    fields: Fields = {"direction": 2, "type": pb.MESSAGE_TYPE_TEMPLATE, "phone_number": SHEENA, **OWN}
    fields |= {"salon_id": salon_id, "send_time": {"seconds": 1749410000}}
    return await stack.messaging.RecordMessage(message_request(whatsapp_id, **fields))


async def get(stack: Stack, whatsapp_id: str) -> pb.Message:
    return await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id=whatsapp_id))


def contents(stack: Stack) -> Any:
    """Return all rows, with their versions."""
    return [rows(stack.database_url, f"SELECT t::text, xmin::text FROM {table} AS t ORDER BY 1") for table in TABLES]


async def test_each_body_is_stored_once_with_all_its_fields(stack: Stack) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    assert sorted(CASES) == sorted(path.stem for path in BODIES.glob("*.json"))
    assert len(CASES) >= 100
    for name, case in CASES.items():
        assert await ingest(stack, payload(name)) == case.counts, name
    for whatsapp_id in sent():
        await record(stack, SALON, whatsapp_id)
    for name, case in CASES.items():
        for item, wanted in zip(messages(name), case.messages, strict=True):
            assert_received(await get(stack, item["id"]), item, first_time(name, item["id"]), wanted)
        for whatsapp_id, wanted in zip(
            dict.fromkeys(s["id"] for s in items(name, "statuses")), case.statuses, strict=True
        ):
            assert_sent(await get(stack, whatsapp_id), wanted)
    before = contents(stack)
    for name, case in CASES.items():
        again = {"duplicates": sum(case.counts.values())} if names_salon(name) else case.counts
        assert await ingest(stack, payload(name)) == again, name
    assert contents(stack) == before


def assert_received(found: pb.Message, item: Any, time: Fields, wanted: Fields) -> None:
    """Check all fields of a message, and its raw item. What the salon sent has the status event of its status."""
    assert json.loads(found.raw_json) == item
    fields = {"direction": 1, "status": pb.MESSAGE_STATUS_RECEIVED, **wanted}
    if fields["status"] not in (pb.MESSAGE_STATUS_RECEIVED, pb.MESSAGE_STATUS_PENDING):
        fields["status_events"] = [{"status": fields["status"], "event_time": time}]
    if "media_id" in fields:
        fields["media_id"] = item[item["type"]]["id"]
    fields |= {"whatsapp_id": item["id"], "salon_id": SALON, "create_time": time, "raw_json": found.raw_json}
    fields |= {"message_id": found.message_id, "conversation_id": found.conversation_id}
    assert found == pb.Message(**fields)


def assert_sent(found: pb.Message, wanted: Fields) -> None:
    """Check the fields set by the statuses of a message; all fields not in `wanted` must be empty."""
    names = ["status", "cost_micros", "currency_code", "error_code", "error_title", "pricing_category", "billable"]
    shown = pb.Message()
    names += ["conversation_origin", "error_details", "biz_opaque_callback_data", "pricing_type", "pricing_model"]
    for name in names:
        if name != "billable" or found.HasField("billable"):
            setattr(shown, name, getattr(found, name))
    assert shown == pb.Message(**wanted)
    assert found.raw_json == ""
    assert len(found.status_events) >= 1


async def test_each_customer_has_one_conversation(stack: Stack) -> None:
    await salon(stack, phone_number_id=PHONE_NUMBER_ID)
    for name in CASES:
        await ingest(stack, payload(name))
    query = "SELECT coalesce(phone_number, ''), coalesce(user_id, ''), customer_name FROM conversations ORDER BY 1, 2"
    assert rows(stack.database_url, query) == [
        ("", "", ""),  # the group
        ("", ANA_ID, "Ana Lima"),
        ("", MIKA_ID, "mika_82"),
        (NINA, "", ""),
        (SHEENA, "", "Sheena Nelson"),
        (PABLO, PABLO_ID, "Pablo Morales"),
        ("+4915112345678", "", "Jörg Weiß 💈"),
        ("+5511987654321", "", "João"),
    ]


def state(stack: Stack, salon_id: str) -> Any:
    """Return all rows of a salon, without generated IDs and times of recording.

    A customer with a number and a user ID may have had two conversations: their merge, which counts in the revision,
    depends on the order.
    """
    revision = "CASE WHEN phone_number IS NULL OR user_id IS NULL THEN revision END"
    customer = "coalesce(c.phone_number, c.user_id)"
    queries = [
        f"SELECT phone_number, user_id, customer_name, status, {revision}, unread_count, started_at, last_message_at,"
        " service_window_expires_at, kind, group_id, reopened_at FROM conversations AS c WHERE salon_id = '{}'",
        f"SELECT {customer}, m.phone_number, direction, whatsapp_id, type, content, m.status, cost_micros,"
        " currency_code, created_at, media_id, reply_to_whatsapp_id, error_code, error_title, pricing_category,"
        " billable, conversation_origin, counted, details, item::text FROM messages AS m"
        " JOIN conversations AS c USING (salon_id, conversation_id)"
        " LEFT JOIN raw_messages USING (salon_id, message_id) WHERE m.salon_id = '{}'",
        "SELECT whatsapp_id, status, occurred_at, error_code, error_title, pricing_category, billable, cost_micros,"
        " currency_code, conversation_origin, details FROM message_status_events WHERE salon_id = '{}'",
        "SELECT whatsapp_id, target_whatsapp_id, kind, direction, phone_number, content, created_at, item::text"
        " FROM message_amendments WHERE salon_id = '{}'",
        f"SELECT {customer}, contact_name, opted_out, opt_out_reason, opt_out_changed_at"
        " FROM customers AS k JOIN conversations AS c ON c.salon_id = k.salon_id AND conversation_id = customer_id"
        " WHERE k.salon_id = '{}'",
        "SELECT kind, reason, replace(item, salon_id, '') FROM webhook_failures WHERE salon_id = '{}'",
    ]
    return [sorted(rows(stack.database_url, query.format(salon_id)), key=repr) for query in queries]


NAMES = [name for name in CASES if names_salon(name)]
# Possible deliveries: the bodies, and records of messages sent by the salon.
DELIVERIES = [*NAMES, *sent()]


async def deliver(stack: Stack, names: list[str]) -> Any:
    """Deliver to a new salon in this order; return its state."""
    salon_id = f"salon-{next(_numbers):012}"
    await salon(stack, salon_id, phone_number_id=salon_id)
    for name in names:
        if name in CASES:
            await ingest(stack, payload(name, salon_id))
        else:
            await record(stack, salon_id, name)
    return state(stack, salon_id)


@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    order=st.permutations(DELIVERIES),
    repeats=st.lists(st.tuples(st.integers(0, len(DELIVERIES)), st.sampled_from(DELIVERIES)), max_size=20),
)
async def test_the_result_does_not_depend_on_the_order_of_delivery(
    stack: Stack, order: list[str], repeats: list[tuple[int, str]]
) -> None:
    played = list(order)
    for place, name in repeats:
        played.insert(place, name)
    if stack.database_url not in _in_order:
        _in_order[stack.database_url] = await deliver(stack, DELIVERIES)
    assert len(_in_order[stack.database_url][0]) == 8
    assert await deliver(stack, played) == _in_order[stack.database_url]
