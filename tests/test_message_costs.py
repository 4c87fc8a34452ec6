"""The cost of a message is the same in any order of its status events, and the statistics sum it."""

import asyncio
import itertools
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.stack import SALON, Fields, Stack, message_request, rows, salon, webhook_body
from tests.test_webhook import ingest, status

SENT, DELIVERED, READ, FAILED = (
    pb.MESSAGE_STATUS_SENT,
    pb.MESSAGE_STATUS_DELIVERED,
    pb.MESSAGE_STATUS_READ,
    pb.MESSAGE_STATUS_FAILED,
)
RANK = [pb.MESSAGE_STATUS_PENDING, SENT, FAILED, DELIVERED, READ]
FOLDED = "status error_code error_title pricing_category billable cost_micros currency_code conversation_origin".split()
_numbers = itertools.count()


async def record(stack: Stack, whatsapp_id: str, **fields: Any) -> pb.Message:
    """Record a template message that was sent at 1000."""
    sent: Fields = {"direction": 2, "type": pb.MESSAGE_TYPE_TEMPLATE, "send_time": Timestamp(seconds=1000), **fields}
    return await stack.messaging.RecordMessage(message_request(whatsapp_id, **sent))


async def report(stack: Stack, whatsapp_id: str, event: Fields) -> pb.Message:
    """Record a status."""
    request = pb.RecordMessageStatusRequest(salon_id=SALON, whatsapp_id=whatsapp_id, **event)
    return await stack.messaging.RecordMessageStatus(request)


def folded(message: pb.Message) -> dict[str, Any]:
    """Return the fields of a message that its statuses decide."""
    return {name: getattr(message, name) for name in FOLDED if name != "billable" or message.HasField("billable")}


def expected(events: list[Fields], own: Fields) -> dict[str, Any]:
    """Return the expected fields of a message that cost `own`: the rule, written without SQL."""
    ranked = sorted(events, key=lambda e: (-RANK.index(e["status"]), e["event_time"].seconds))
    failed = sorted((e for e in events if e["status"] == FAILED), key=lambda e: e["event_time"].seconds)

    def first(name: str, among: list[Fields], default: Any) -> Any:
        return next((event[name] for event in among if name in event), default)

    found = {
        "status": first("status", ranked, pb.MESSAGE_STATUS_PENDING),
        "error_code": first("error_code", failed[:1], 0),
        "error_title": first("error_title", failed[:1], ""),
        "pricing_category": first("pricing_category", ranked, ""),
        "cost_micros": first("cost_micros", ranked, own.get("cost_micros", 0)),
        "currency_code": first("currency_code", ranked, own.get("currency_code", "")),
        "conversation_origin": first("conversation_origin", ranked, ""),
    }
    if (billable := first("billable", ranked, None)) is not None:
        found["billable"] = billable
        if not billable:
            found |= {"cost_micros": 0, "currency_code": ""}
    return found


def event(state: int, second: int, **fields: Any) -> Fields:
    return {"status": state, "event_time": Timestamp(seconds=second), **fields}


SCENES: list[list[Fields]] = [
    [
        event(SENT, 1, pricing_category="marketing", billable=False, conversation_origin="service"),
        event(DELIVERED, 2, billable=True, cost_micros=7, currency_code="USD"),
        event(READ, 3, pricing_category="utility"),
    ],
    [
        event(SENT, 1, billable=False),
        event(READ, 2, billable=True),
        event(READ, 1, pricing_category="service"),
    ],
    [
        event(FAILED, 5, error_code=131026, error_title="late"),
        event(FAILED, 4, error_code=131049, error_title="early"),
        event(DELIVERED, 1, cost_micros=3, currency_code="EUR"),
        event(DELIVERED, 2, cost_micros=9, currency_code="GBP", conversation_origin="utility"),
    ],
]


async def test_costs_and_errors_do_not_depend_on_the_order_of_statuses(stack: Stack) -> None:
    await salon(stack)
    own = {"cost_micros": 50, "currency_code": "CHF"}

    async def play(whatsapp_id: str, order: tuple[Fields | None, ...]) -> None:
        """Record the message where `order` has None; each reply must show the events so far."""
        seen: list[Fields] = []
        known: Fields = {}
        for step in (*order, *order[:2]):
            if step is None:
                message, known = await record(stack, whatsapp_id, **own), own
            else:
                message, seen = await report(stack, whatsapp_id, step), [*seen, step]
            assert folded(message) == expected(seen, known), order

    orders = [order for scene in SCENES for order in itertools.permutations([None, *scene])]
    assert len(orders) == 24 + 24 + 120
    await asyncio.gather(*(play(f"wamid.{number}", order) for number, order in enumerate(orders)))


def moment(event: Fields) -> Any:
    """Return the fields that identify an event of a message."""
    return event["status"], event["event_time"].seconds


EVENTS = st.fixed_dictionaries(
    {
        "status": st.sampled_from([SENT, DELIVERED, READ, FAILED]),
        "event_time": st.builds(Timestamp, seconds=st.integers(1, 3)),
    },
    optional={
        "error_code": st.integers(1, 3),
        "error_title": st.sampled_from("ab"),
        "pricing_category": st.sampled_from("ab"),
        "billable": st.booleans(),
        "conversation_origin": st.sampled_from("ab"),
    },
)
PRICED = st.tuples(EVENTS, st.integers(1, 3), st.sampled_from(["EUR", "USD"])).map(
    lambda made: (
        made[0] if made[0].get("billable") is False else {**made[0], "cost_micros": made[1], "currency_code": made[2]}
    )
)


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    events=st.lists(st.one_of(EVENTS, PRICED), max_size=5, unique_by=moment),
    data=st.data(),
)
async def test_random_statuses_in_random_orders_follow_the_rule(
    stack: Stack, events: list[Fields], data: st.DataObject
) -> None:
    await salon(stack)
    whatsapp_id, own = f"wamid.{next(_numbers)}", {"cost_micros": 50, "currency_code": "CHF"}
    steps: list[Fields | None] = [None, *events]
    order = data.draw(st.permutations(steps)) + data.draw(st.lists(st.sampled_from(steps), max_size=3))
    for step in order:
        await (record(stack, whatsapp_id, **own) if step is None else report(stack, whatsapp_id, step))
    found = await stack.messaging.GetMessage(pb.GetMessageRequest(salon_id=SALON, whatsapp_id=whatsapp_id))
    assert folded(found) == expected(events, own)
    found_events = [(e.event_time.seconds, pb.MessageStatus.Name(e.status)) for e in found.status_events]
    assert found_events == sorted((e["event_time"].seconds, pb.MessageStatus.Name(e["status"])) for e in events)


async def test_an_event_with_the_same_time_does_not_replace_the_first_one(stack: Stack) -> None:
    await salon(stack)
    await record(stack, "wamid.1")
    first = await report(stack, "wamid.1", event(READ, 1, billable=True, cost_micros=5, currency_code="EUR"))
    assert await report(stack, "wamid.1", event(READ, 1, cost_micros=9, currency_code="USD")) == first
    assert rows(stack.database_url, "SELECT cost_micros FROM message_status_events") == [(5,)]


async def test_the_statistics_sum_billed_costs(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    cost: Fields = {"cost_micros": 100, "currency_code": "EUR"}
    for number in range(4):
        await record(stack, f"wamid.{number}", **cost)
    regular = {"billable": True, "pricing_model": "PMP", "category": "marketing", "type": "regular"}
    prices: list[Any] = [
        {"billable": False, "pricing_model": "PMP", "category": "service", "type": "free_customer_service"},
        {**regular, "amount": {"value": 5, "offset": 10_000}, "currency": "EUR"},
        regular,
    ]
    statuses = [status(number, pricing=pricing) for number, pricing in enumerate(prices)]
    assert await ingest(stack, webhook_body("1", statuses=statuses)) == {"statuses": 3}
    period: Fields = {"start_time": Timestamp(seconds=0), "end_time": Timestamp(seconds=5000)}
    stats = await stack.stats.GetSalonStats(stats_pb2.GetSalonStatsRequest(salon_id=SALON, **period))
    assert list(stats.costs) == [stats_pb2.Cost(currency_code="EUR", cost_micros=500 + 100 + 100)]
    assert stats.messages == 4


async def test_amounts_in_all_formats_are_read_and_invalid_ones_lose_no_status(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    right: list[tuple[Any, int]] = [
        ({"amount": {"value": 1131, "offset": 10_000}}, 113_100),
        ({"amount": "0.0456"}, 45_600),
        ({"amount": 0.0456}, 45_600),
        ({"amount": 2}, 2_000_000),
        ({"amount_micros": 45_600}, 45_600),
        ({"amount_micros": "45600"}, 45_600),
        ({"amount": "1000000000"}, 10**15),
    ]
    amounts: list[Any] = ["x", "", "-1", -1, 0, 1e400, "NaN", "1e999999", True, None, [], {}, "1000000001", "1e-30"]
    wrong: list[Any] = [{"amount": amount} for amount in amounts]
    wrong += [{"amount": {"value": 1, "offset": offset}} for offset in (0, -1, "x", None, 1e400)]
    wrong += [{"amount": 1, "currency": currency} for currency in ("", "eur", "EURO", 7, None, "\0\0\0")]
    wrong += [{"amount_micros": value} for value in (10**15 + 1, 2**70, "x", None)]
    cases = [*right, *((pricing, 0) for pricing in wrong), ([], 0), ("free", 0)]
    statuses = []
    for number, (pricing, _) in enumerate(cases):
        priced = {"currency": "EUR", "billable": True, **pricing} if isinstance(pricing, dict) else pricing
        statuses.append(status(number, pricing=priced))
    assert await ingest(stack, webhook_body("1", statuses=statuses)) == {"statuses": len(cases)}
    query = "SELECT whatsapp_id, coalesce(cost_micros, 0) FROM message_status_events"
    found = dict(rows(stack.database_url, query))
    assert [found[f"wamid.{number}"] for number in range(len(cases))] == [cost for _, cost in cases]


async def test_a_price_counts_without_a_time_and_after_its_status(stack: Stack) -> None:
    await salon(stack)
    bare: Fields = {"salon_id": SALON, "whatsapp_id": "wamid.1", "status": "MESSAGE_STATUS_READ"}
    priced: Fields = {**bare, "pricing_category": "utility", "cost_micros": 7, "currency_code": "EUR"}
    for fields in (bare, priced, bare, priced):
        message = await stack.messaging.RecordMessageStatus(pb.RecordMessageStatusRequest(**fields))
    assert (message.cost_micros, message.pricing_category) == (7, "utility")
    assert rows(stack.database_url, "SELECT count(*) FROM message_status_events") == [(2,)]
