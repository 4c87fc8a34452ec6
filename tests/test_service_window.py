"""The service window: for 24 hours after a customer's message any message may be sent, then only templates."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.rpc.error_details_pb2 import PreconditionFailure

from parlor.messaging.v1 import messaging_pb2 as pb
from tests.stack import PHONE, SALON, Fields, Stack, failure, message_request, rows, running, salon, webhook_body
from tests.test_webhook import ingest, text

HEARD = 1_700_000_000
DAY = 86_400
INBOUND, OUTBOUND = pb.MESSAGE_DIRECTION_INBOUND, pb.MESSAGE_DIRECTION_OUTBOUND


def at(second: int, nanos: int = 0, direction: Any = OUTBOUND, **fields: Any) -> pb.RecordMessageRequest:
    """Return a request to record a message sent at a time."""
    sent: Fields = {"send_time": {"seconds": second, "nanos": nanos}, "direction": direction, **fields}
    return message_request(f"wamid.{uuid4()}", **sent)


def until(stack: Stack) -> Any:
    """Return the end of the window, in s since 1970; None if it never opened."""
    query = "SELECT extract(epoch FROM service_window_expires_at)::bigint FROM conversations"
    return rows(stack.database_url, query)[0][0]


async def refused(stack: Stack, request: pb.RecordMessageRequest) -> None:
    """Check that a message is refused, and nothing written."""
    tables = ("conversations", "messages", "messaging_requests")
    before = [rows(stack.database_url, f"SELECT t::text FROM {table} AS t") for table in tables]
    error = await failure(stack.messaging.RecordMessage(request))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SERVICE_WINDOW_CLOSED")
    [violation] = [v for d in error.details if isinstance(d, PreconditionFailure) for v in d.violations]
    name = "phone_number" if request.phone_number else "user_id"  # without the value
    assert violation.subject == f"conversation/{SALON}/{name}"
    assert [rows(stack.database_url, f"SELECT t::text FROM {table} AS t") for table in tables] == before


async def test_the_window_ends_24_hours_after_the_customers_message(stack: Stack) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(at(HEARD, direction=INBOUND))
    for second, nanos in ((HEARD - DAY, 0), (HEARD, 0), (HEARD + DAY - 1, 999_999_000)):
        await stack.messaging.RecordMessage(at(second, nanos))
    for second, nanos in ((HEARD + DAY, 0), (HEARD + DAY, 1_000), (HEARD + 9 * DAY, 0)):
        await refused(stack, at(second, nanos, request_id=str(uuid4())))
    assert until(stack) == HEARD + DAY


@pytest.mark.parametrize("customer", [{"phone_number": PHONE}, {"phone_number": "", "user_id": "US.1"}])
async def test_a_customer_who_never_wrote_gets_templates_only(stack: Stack, customer: Fields) -> None:
    await salon(stack)
    await refused(stack, at(HEARD, **customer))
    template = await stack.messaging.RecordMessage(at(HEARD, type=pb.MESSAGE_TYPE_TEMPLATE, **customer))
    assert template.type == pb.MESSAGE_TYPE_TEMPLATE
    for kind in (pb.MESSAGE_TYPE_UNSPECIFIED, pb.MESSAGE_TYPE_IMAGE, pb.MESSAGE_TYPE_INTERACTIVE):
        await refused(stack, at(HEARD, type=kind, **customer))
    assert until(stack) is None


async def test_each_inbound_message_extends_the_window_and_a_late_one_does_not_shorten_it(stack: Stack) -> None:
    await salon(stack, phone_number_id="1")
    await stack.messaging.RecordMessage(at(HEARD, direction=INBOUND))
    sender = {"from": PHONE.removeprefix("+")}
    await ingest(stack, webhook_body("1", messages=[text(1, timestamp=str(HEARD + DAY), **sender)]))
    assert until(stack) == HEARD + 2 * DAY
    await stack.messaging.RecordMessage(at(HEARD + 2 * DAY - 1))
    await ingest(stack, webhook_body("1", messages=[text(2, timestamp=str(HEARD - DAY), **sender)]))
    await stack.messaging.RecordMessage(at(HEARD - 5, direction=INBOUND))
    await stack.messaging.RecordMessage(at(HEARD + 9 * DAY, type=pb.MESSAGE_TYPE_TEMPLATE))
    assert until(stack) == HEARD + 2 * DAY
    await refused(stack, at(HEARD + 2 * DAY))


async def test_a_repeat_returns_the_first_message_even_if_the_window_is_closed(stack: Stack) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(at(HEARD, direction=INBOUND))
    first = await stack.messaging.RecordMessage(message_request("a", direction=OUTBOUND, send_time={"seconds": HEARD}))
    again = message_request("a", direction=OUTBOUND, send_time={"seconds": HEARD + 9 * DAY})
    assert await stack.messaging.RecordMessage(again) == first


async def test_an_unknown_salon_is_reported_before_a_closed_window(stack: Stack) -> None:
    error = await failure(stack.messaging.RecordMessage(at(HEARD)))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SALON_NOT_FOUND")


async def test_a_closed_window_is_reported_without_the_booking_service(
    stack: Stack, database_url: str, redis_url: str
) -> None:
    await salon(stack)
    await stack.messaging.RecordMessage(at(HEARD, direction=INBOUND))
    async with running(database_url, redis_url) as restarted:
        await restarted.servers["booking"].drain()
        await refused(restarted, at(HEARD + DAY))


async def test_concurrent_first_messages_are_all_allowed(stack: Stack) -> None:
    await salon(stack)
    templates = (at(HEARD, type=pb.MESSAGE_TYPE_TEMPLATE) for _ in range(50))
    recorded = await asyncio.gather(*map(stack.messaging.RecordMessage, templates))
    assert len({message.conversation_id for message in recorded}) == 1
