"""A day of events of all kinds comes to the same in any order of delivery. `--deliveries N` delivers it N times."""

import json
from collections.abc import Iterator
from datetime import datetime
from random import Random
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.day import BEGIN, DAY, Day, Event
from tests.kinds import NUMBER
from tests.stack import Stack, message_request, salon, walk
from tests.test_webhook import ingest

MINUTES = 300


def deliveries(day: Day, random: Random) -> list[Event]:
    """Return the events as they arrive: up to 5 min late, one in ten again, some a day late."""
    arrivals = [(event.second + random.uniform(0, MINUTES), event) for event in day.events]
    repeated = random.sample(arrivals, len(arrivals) // 10)
    arrivals = [(time + DAY, event) if random.random() < 0.02 else (time, event) for time, event in arrivals]
    arrivals += [(time + random.uniform(0, MINUTES), event) for time, event in repeated]
    return [event for _, event in sorted(arrivals, key=lambda arrival: arrival[0])]


def bodies(salon_id: str, events: list[Event], random: Random) -> Iterator[bytes | Event]:
    """Yield webhook bodies of one or several changes, and the messages to be recorded while they fill."""
    metadata = {"display_phone_number": NUMBER, "phone_number_id": salon_id}
    changes: list[Any] = []
    room = 1
    for event in events:
        if event.record:
            yield event
            continue
        changes.append({"field": event.field, "value": {"metadata": metadata, **event.value}})
        if len(changes) >= room:
            yield json.dumps({"entry": [{"id": "1", "changes": changes}]}).encode()
            changes, room = [], random.choice((1, 5, 40, 120))
    yield json.dumps({"entry": [{"id": "1", "changes": changes}]}).encode()


async def deliver(stack: Stack, day: Day, salon_id: str, random: Random | None) -> None:
    """Deliver a day to a new salon; without `random` in the order of its times."""
    await salon(stack, salon_id, phone_number_id=salon_id)
    events = deliveries(day, random) if random else day.events
    for one in bodies(salon_id, events, random or Random(0)):
        if isinstance(one, Event) and one.record:
            fields: dict[str, Any] = {
                "salon_id": salon_id,
                "type": pb.MESSAGE_TYPE_TEMPLATE,
                "direction": pb.MESSAGE_DIRECTION_OUTBOUND,
            }
            sent = message_request(**one.record, **fields, send_time={"seconds": one.second})
            await stack.messaging.RecordMessage(sent)
        elif isinstance(one, bytes):
            await ingest(stack, one)


def without_ids(found: Any, salon_id: str) -> Any:
    """Return a reply as JSON, without generated IDs and the revision."""
    fields = MessageToDict(found, preserving_proto_field_name=True)
    for name in ("message_id", "conversation_id", "salon_id", "etag", "webhook_failure_id"):
        fields.pop(name, None)
        fields.get("last_message", {}).pop(name, None)
    return json.loads(json.dumps(fields).replace(salon_id, "SALON"))


async def outcome(stack: Stack, salon_id: str) -> dict[str, Any]:
    """Return the inbox, all messages in their order, the failures and the statistics of a salon."""
    period: Any = {"salon_id": salon_id, "start_time": {"seconds": BEGIN - 20 * DAY}}
    period |= {"end_time": {"seconds": BEGIN + 3 * DAY}}
    calls: dict[str, Any] = {
        "inbox": (stack.messaging.ListConversations, pb.ListConversationsRequest(salon_id=salon_id)),
        "messages": (stack.messaging.ListMessages, pb.ListMessagesRequest(salon_id=salon_id)),
        "failures": (stack.messaging.ListWebhookFailures, pb.ListWebhookFailuresRequest(salon_id=salon_id)),
    }
    found: dict[str, Any] = {}
    for name, (rpc, request) in calls.items():
        found[name] = [without_ids(one, salon_id) for one in await walk(rpc, request, 100)]
    found["failures"] = sorted(failure["raw_json"] for failure in found["failures"])
    salon_stats = await stack.stats.GetSalonStats(stats_pb2.GetSalonStatsRequest(**period))
    by_direction = await stack.stats.GetMessageDirectionStats(stats_pb2.GetMessageDirectionStatsRequest(**period))
    for name, stats in (("stats", salon_stats), ("directions", by_direction)):
        stats.ClearField("as_of")
        found[name] = without_ids(stats, salon_id)
    return found


def seconds(time: str) -> float:
    """Return the s since 1970 of a Timestamp in JSON."""
    return datetime.fromisoformat(time).timestamp()


def check(day: Day, found: dict[str, Any]) -> None:
    """Check what a delivery came to against what the events of the day say."""
    by_name = {one.get("phone_number") or one.get("user_id") or one["group_id"]: one for one in found["inbox"]}
    assert {name: one["unread_count"] for name, one in by_name.items() if one.get("unread_count")} == day.unread
    windows = {name: one.get("service_window_expires_time") for name, one in by_name.items()}
    assert {name: seconds(time) for name, time in windows.items() if time} == day.window
    assert int(found["directions"]["inbound_messages"]) == day.inbound
    assert int(found["directions"]["outbound_messages"]) == day.outbound
    for name in ("reactions", "edited_time", "revoked_time", "call", "sender", "origin", "system"):
        assert sum(name in one for one in found["messages"]) > 5, name
    times = [one["create_time"] for one in found["messages"]]
    assert times == sorted(times, reverse=True)


async def test_a_day_comes_to_the_same_in_any_order_of_delivery(stack: Stack, request: pytest.FixtureRequest) -> None:
    day = Day()
    assert len(day.events) >= 2_000
    await deliver(stack, day, "in-order", None)
    expected = await outcome(stack, "in-order")
    check(day, expected)
    for number in range(request.config.getoption("deliveries") or 2):
        salon_id = f"delivery-{number}"
        await deliver(stack, day, salon_id, Random(number))
        assert await outcome(stack, salon_id) == expected, f"delivery {number}"
