"""The round trips of a write to Postgres, and what it holds while it waits."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from libs.db import BEGIN, Connection
from libs.server.idempotency import _LOCKS, _locks
from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from services.booking.booking_write_queries import resource_lock
from tests.load import until
from tests.stack import (
    SALON,
    Fields,
    Stack,
    booking_request,
    message_request,
    quiet,
    rows,
    salon,
    webhook_body,
)
from tests.test_connection import connect
from tests.test_webhook import signed, status, text


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of statements in each round trip of a transaction."""
    trips: list[int] = []
    send = Connection._send

    async def count(conn: Connection, statements: Any) -> Any:
        if statements[0] is BEGIN or conn.pgconn.transaction_status != TransactionStatus.IDLE:
            trips.append(len(statements))
        return await send(conn, statements)

    monkeypatch.setattr(Connection, "_send", count)
    yield trips


async def test_a_write_takes_two_round_trips(database_url: str, redis_url: str, sent: list[int]) -> None:
    async with quiet(database_url, redis_url) as stack:
        await salon(stack, phone_number_id="1")
        body = webhook_body("1", messages=[text(1), text(2, from_user_id="US.1")], statuses=[status(3)])
        record = messaging_pb2.RecordMessageStatusRequest(
            salon_id=SALON, whatsapp_id="wamid.9", status=messaging_pb2.MESSAGE_STATUS_READ
        )
        template = {"direction": "MESSAGE_DIRECTION_OUTBOUND", "type": "MESSAGE_TYPE_TEMPLATE"}
        both = {"phone_number": "+4915100000009", "user_id": "US.2"}
        await stack.messaging.RecordMessage(message_request("wamid.0"))  # from now on messaging knows the salon
        calls: list[tuple[Any, Any, list[int]]] = [
            (stack.booking.CreateBooking, booking_request(resource_id="anna"), [4, 1]),
            (stack.booking.CreateBooking, booking_request(request_id=str(uuid4())), [5, 2]),
            (stack.messaging.RecordMessage, message_request("wamid.9", **template), [3, 1]),
            (stack.messaging.RecordMessage, message_request("wamid.10", **both), [4, 1]),
            (stack.messaging.RecordMessage, message_request("wamid.11", **both), [4, 1]),
            (stack.messaging.IngestWebhook, signed(body), [6, 1]),
            (stack.messaging.RecordMessageStatus, record, [4, 1]),
        ]
        for rpc, request, expected in calls:
            sent.clear()
            await rpc(request)
            assert sent == expected


async def test_a_message_that_joins_two_identities_takes_eight(
    database_url: str, redis_url: str, sent: list[int]
) -> None:
    """Once for each customer: the first transaction is rolled back; the second one, with two more reads, runs alone."""
    async with quiet(database_url, redis_url) as stack:
        await salon(stack)
        await stack.messaging.RecordMessage(message_request("wamid.0"))
        sent.clear()
        await stack.messaging.RecordMessage(message_request("wamid.1", user_id="US.3"))
        assert sent == [4, 1, 2, 4, 1, 1]


async def test_moving_a_booking_takes_five(database_url: str, redis_url: str, sent: list[int]) -> None:
    async with quiet(database_url, redis_url) as stack:
        await salon(stack)
        code = (await stack.booking.CreateBooking(booking_request(resource_id="anna"))).booking_code
        sent.clear()
        to: Fields = {"resource_id": "ben", "ignore_rules": True}
        move = booking_pb2.RescheduleBookingRequest(salon_id=SALON, booking_code=code, **to)
        assert (await stack.booking.RescheduleBooking(move)).resource_id == "ben"
        assert sent == [3, 3, 1, 1, 1]


async def test_a_write_that_waits_for_a_lock_has_no_transaction_id(stack: Stack) -> None:
    """With an ID it would prevent fills of rows that others write meanwhile."""
    await salon(stack)
    lock = _locks([resource_lock(SALON, "anna")]).params["locks"]
    with psycopg.connect(stack.database_url) as other:
        other.execute(_LOCKS, {"locks": lock})
        waiting = asyncio.ensure_future(stack.booking.CreateBooking(booking_request(resource_id="anna")))
        query = (
            "SELECT backend_xid IS NULL FROM pg_stat_activity"
            " WHERE wait_event = 'advisory' AND datname = current_database()"
        )
        await until(lambda: bool(rows(stack.database_url, query)))
        assert rows(stack.database_url, query) == [(True,)]
        other.rollback()
    assert (await waiting).resource_id == "anna"


async def test_shared_names_are_locked_together_and_before_other_names(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        first, second, other = [await stack.enter_async_context(await connect(database_url)) for _ in range(3)]
        await first.run(BEGIN, _locks(["resource"], ["salon time"]))
        await second.run(BEGIN, _locks(["another resource"], ["salon time"]))  # does not wait
        alone = asyncio.ensure_future(other.run(BEGIN, _locks(["salon time"])))
        await until(lambda: waiting_locks(database_url) == 1)
        await first.rollback()
        await asyncio.sleep(0)
        assert not alone.done()
        # Behind the one that waits to be alone, and so without the resource, which nobody waits for.
        third = asyncio.ensure_future(first.run(BEGIN, _locks(["resource"], ["salon time"])))
        await until(lambda: waiting_locks(database_url) == 2)
        await second.run(_locks(["resource"]))
        await second.rollback()
        await alone
        await other.rollback()
        await third
        await first.rollback()


def waiting_locks(database_url: str) -> int:
    query = """
        SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database
        WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"""
    return int(rows(database_url, query)[0][0])


async def test_a_status_that_is_known_writes_no_message(stack: Stack) -> None:
    await salon(stack)
    template = {"direction": "MESSAGE_DIRECTION_OUTBOUND", "type": "MESSAGE_TYPE_TEMPLATE"}
    await stack.messaging.RecordMessage(message_request("wamid.1", **template))
    read = messaging_pb2.RecordMessageStatusRequest(
        salon_id=SALON, whatsapp_id="wamid.1", status=messaging_pb2.MESSAGE_STATUS_READ
    )
    versions = []
    for _ in range(3):
        assert (await stack.messaging.RecordMessageStatus(read)).status == messaging_pb2.MESSAGE_STATUS_READ
        versions += rows(stack.database_url, "SELECT xmin::text FROM messages")
    assert versions == versions[:1] * 3
