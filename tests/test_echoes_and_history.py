"""Messages of the phone app: those that a person sends there now, and those from before the number was connected."""

import itertools
from typing import Any

from parlor.messaging.v1 import messaging_pb2 as pb
from parlor.stats.v1 import stats_pb2
from tests.kinds import NUMBER, PERSON, Item, body, call, echo, history, past
from tests.stack import SALON, Stack, rows, salon, webhook_body
from tests.test_webhook import ingest, status, text

SECOND, DAY = 1_749_416_383, 86_400
SHEENA = f"+{PERSON}"
OUTBOUND, INBOUND = pb.MESSAGE_DIRECTION_OUTBOUND, pb.MESSAGE_DIRECTION_INBOUND


def echoes(*items: Item) -> bytes:
    """Return the body of messages that were sent on the phone app."""
    return body("1", "smb_message_echoes", message_echoes=list(items))


async def conversation(stack: Stack) -> pb.Conversation:
    request = pb.GetConversationRequest(salon_id=SALON, phone_number=SHEENA, message_limit=50)
    return await stack.messaging.GetConversation(request)


async def counts(stack: Stack) -> tuple[int, int]:
    """Return the inbound and outbound messages of the statistics."""
    request = stats_pb2.GetMessageDirectionStatsRequest(salon_id=SALON)
    request.start_time.FromSeconds(SECOND - 300 * DAY)
    request.end_time.FromSeconds(SECOND + DAY)
    found = await stack.stats.GetMessageDirectionStats(request)
    return found.inbound_messages, found.outbound_messages


async def test_an_echo_is_an_outbound_message_and_its_statuses_apply(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    assert await ingest(stack, webhook_body("1", statuses=[status(1, status="delivered")])) == {"statuses": 1}
    image = echo("wamid.2", SECOND + 1) | {"type": "image", "image": {"id": "77", "caption": "Done!"}}
    assert await ingest(stack, echoes(echo("wamid.1", SECOND), image)) == {"messages": 2}
    sent, first = (await conversation(stack)).messages
    assert (first.direction, first.origin, first.status) == (
        OUTBOUND,
        pb.MESSAGE_ORIGIN_PHONE_APP,
        pb.MESSAGE_STATUS_DELIVERED,
    )
    assert (sent.content, sent.media_id, sent.status) == ("Done!", "77", pb.MESSAGE_STATUS_SENT)
    assert (first.phone_number, first.create_time.seconds) == (SHEENA, SECOND)
    assert await ingest(stack, echoes(echo("wamid.1", SECOND), image)) == {"duplicates": 2}
    assert await counts(stack) == (0, 2)


async def test_an_echo_without_a_receiver_is_kept_and_loses_no_neighbor(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    bad: list[Any] = [echo("wamid.1", SECOND, to=None), echo("wamid.2", SECOND, to="x"), 7, {}]
    assert await ingest(stack, echoes(*bad, echo("wamid.3", SECOND))) == {"messages": 1, "rejected": 4}
    failures = await stack.messaging.ListWebhookFailures(pb.ListWebhookFailuresRequest(salon_id=SALON))
    assert {one.kind for one in failures.webhook_failures} == {pb.WEBHOOK_ITEM_KIND_OTHER}


def chunks() -> list[bytes]:
    """Return three parts of the history, and media that come apart."""
    media = past("wamid.5", SECOND - 90 * DAY, type="image", image={"id": "77", "caption": "Like this"})
    placeholder = past("wamid.5", SECOND - 90 * DAY, type="media_placeholder", text=None)
    return [
        history("1", past("wamid.1", SECOND - 100 * DAY), past("wamid.2", SECOND - 99 * DAY, sent=True), phase=2),
        history("1", past("wamid.3", SECOND - 98 * DAY, sent=True, status="ERROR"), chunk=2),
        history("1", past("wamid.4", SECOND - 97 * DAY), placeholder, phase=1),
        body("1", "history", messages=[media]),
    ]


async def test_chunks_of_history_come_in_any_order_and_count_nowhere(stack: Stack) -> None:
    shown = []
    for number, order in enumerate(itertools.islice(itertools.permutations(chunks()), 0, 24, 5)):
        name = f"salon-{number}"
        await salon(stack, name, phone_number_id=name)
        for one in order:
            await ingest(stack, one.replace(b'"phone_number_id": "1"', f'"phone_number_id": "{name}"'.encode()))
            await ingest(stack, one.replace(b'"phone_number_id": "1"', f'"phone_number_id": "{name}"'.encode()))
        found = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=name, phone_number=SHEENA))
        assert (found.unread_count, found.HasField("service_window_expires_time")) == (0, False)
        assert (found.start_time.seconds, found.last_message_time.seconds) == (SECOND - 100 * DAY, SECOND - 90 * DAY)
        shown.append([(one.whatsapp_id, one.direction, one.status, one.type, one.content) for one in found.messages])
        assert {one.origin for one in found.messages} == {pb.MESSAGE_ORIGIN_HISTORY}
        request = stats_pb2.GetSalonStatsRequest(salon_id=name)
        request.start_time.FromSeconds(SECOND - 300 * DAY)
        request.end_time.FromSeconds(SECOND)
        assert (await stack.stats.GetSalonStats(request)).messages == 0
        raw = "SELECT item->>'type' FROM raw_messages JOIN messages USING (salon_id, message_id)"
        raw += f" WHERE whatsapp_id = 'wamid.5' AND salon_id = '{name}'"
        assert rows(stack.database_url, raw) == [("image",)]
    assert shown == [
        [
            ("wamid.5", INBOUND, pb.MESSAGE_STATUS_RECEIVED, pb.MESSAGE_TYPE_IMAGE, "Like this"),
            ("wamid.4", INBOUND, pb.MESSAGE_STATUS_RECEIVED, pb.MESSAGE_TYPE_TEXT, "hi"),
            ("wamid.3", OUTBOUND, pb.MESSAGE_STATUS_FAILED, pb.MESSAGE_TYPE_TEXT, "hi"),
            ("wamid.2", OUTBOUND, pb.MESSAGE_STATUS_READ, pb.MESSAGE_TYPE_TEXT, "hi"),
            ("wamid.1", INBOUND, pb.MESSAGE_STATUS_RECEIVED, pb.MESSAGE_TYPE_TEXT, "hi"),
        ]
    ] * len(shown)


async def test_a_message_of_now_is_not_replaced_by_its_copy_in_the_history(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await ingest(stack, webhook_body("1", messages=[text(1)]))
    assert await ingest(stack, history("1", past("wamid.1", SECOND), past("wamid.2", SECOND - 9))) == {
        "messages": 1,
        "duplicates": 1,
    }
    found = await conversation(stack)
    assert (found.unread_count, [one.origin for one in found.messages]) == (1, [0, pb.MESSAGE_ORIGIN_HISTORY])
    assert await counts(stack) == (1, 0)


async def test_a_large_history_is_recorded_completely(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    items = [past(f"wamid.{number}", SECOND - number, sent=bool(number % 2)) for number in range(900)]
    assert len(history("1", *items)) > 2 * 65_536
    assert await ingest(stack, history("1", *items)) == {"messages": 900}
    assert await ingest(stack, history("1", *items)) == {"duplicates": 900}
    assert await counts(stack) == (0, 0)


async def test_a_call_is_one_message_in_any_order_of_its_events(stack: Stack) -> None:
    events = [call("wacid.1", "connect", SECOND), call("wacid.1", "terminate", SECOND + 60, 50)]
    for number, order in enumerate((events, events[::-1], [*events, *events], events[1:])):
        name = f"salon-{number}"
        await salon(stack, name, phone_number_id=name)
        for event in order:
            await ingest(stack, body(name, "calls", calls=[event]))
        found = await stack.messaging.GetConversation(pb.GetConversationRequest(salon_id=name, phone_number=SHEENA))
        [message] = found.messages
        assert (message.type, message.direction) == (pb.MESSAGE_TYPE_CALL, INBOUND)
        assert message.call == pb.Call(status=pb.CALL_STATUS_COMPLETED, duration_seconds=50)
        assert message.create_time.seconds == (SECOND if len(order) > 1 else SECOND + 60)
        assert found.unread_count == 0


async def test_a_call_of_the_salon_is_outbound_and_its_statuses_are_events(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    statuses = [
        {"id": "wacid.1", "type": "call", "status": name, "timestamp": str(SECOND + place), "recipient_id": PERSON}
        for place, name in enumerate(("RINGING", "REJECTED"))
    ]
    assert await ingest(stack, body("1", "calls", statuses=statuses)) == {"messages": 2}
    [message] = (await conversation(stack)).messages
    assert (message.direction, message.call.status) == (OUTBOUND, pb.CALL_STATUS_MISSED)
    assert (await conversation(stack)).unread_count == 0
    bad: list[Any] = [{**statuses[0], "status": "BUSY"}, {**statuses[0], "recipient_id": NUMBER * 2}, 7]
    assert await ingest(stack, body("1", "calls", statuses=bad)) == {"rejected": 3}
    assert await ingest(stack, body("1", "calls", calls=[call("wacid.2", "ring", SECOND), 8])) == {"rejected": 2}
