"""libs/db: what rows become, and the connection that they come by."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest
import uvloop
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.dayofweek_pb2 import MONDAY
from google.type.timeofday_pb2 import TimeOfDay
from psycopg.pq import TransactionStatus
from pydantic import SecretStr

from libs.db import (
    Connection,
    Database,
    DatabaseSettings,
    DatabaseUnavailable,
    Queries,
    elements,
    fetch_encoded,
    fetch_rows,
    text_array,
)
from parlor.booking.v1.booking_pb2 import BOOKING_STATUS_NO_SHOW, Booking, ListBookingsResponse, OpeningHours, Salon
from parlor.messaging.v1 import messaging_pb2 as messaging
from parlor.stats.v1.stats_pb2 import SalonStats
from tests.load import until

LOOPS = [asyncio.run, uvloop.run]
Run = Callable[[Coroutine[Any, Any, None]], None]

CASES: list[tuple[str, Message]] = [
    (
        "'' AS booking_code, 'é' AS notes, 'BOOKING_STATUS_NO_SHOW' AS status, 300 AS revision, NULL::text AS etag",
        Booking(notes="é", status=BOOKING_STATUS_NO_SHOW, revision=300),
    ),
    *(
        (f"repeat('x', {size}) AS notes, 'after' AS etag", Booking(notes="x" * size, etag="after"))
        for size in (1, 127, 128, 16_383, 16_384, 100_000)
    ),
    (
        "timestamptz '1969-12-31 23:59:59.999999+00' AS create_time, timestamptz 'epoch' AS start_time,"
        " timestamptz '9999-12-31 23:59:59.5+00' AS end_time",
        Booking(
            create_time=Timestamp(seconds=-1, nanos=999_999_000),
            start_time=Timestamp(),
            end_time=Timestamp(seconds=253_402_300_799, nanos=500_000_000),
        ),
    ),
    (
        """'[{"day_of_week": "MONDAY", "open_time": {"hours": 9}}]'::jsonb AS opening_hours,"""
        " '[]'::jsonb AS special_hours",
        Salon(opening_hours=[OpeningHours(day_of_week=MONDAY, open_time=TimeOfDay(hours=9))]),
    ),
    ("ARRAY['', 'b']::text[] AS tags, 0 AS unread_count", messaging.Conversation(tags=["", "b"])),
    ("ARRAY[]::text[] AS tags, 7 AS unread_count", messaging.Conversation(unread_count=7)),
    ("false AS billable, -5::bigint AS cost_micros", messaging.Message(billable=False, cost_micros=-5)),
    ("NULL::boolean AS billable", messaging.Message()),
    (
        "0::bigint AS total_cost_micros, 9223372036854775807 AS messages",
        SalonStats(total_cost_micros=0, messages=2**63 - 1),
    ),
]


async def connect(url: str) -> Connection:
    conn = await Connection.connect(url, autocommit=True)
    conn.queries = Queries(threshold=60)
    return conn


async def test_a_row_is_the_message_of_its_columns(database_url: str) -> None:
    async with await connect(database_url) as conn:
        for columns, message in CASES * 2:  # the second time of what is kept
            [row] = await fetch_encoded(conn, type(message), f"SELECT {columns}", [])
            assert type(message).FromString(row) == message
            assert len(row) == message.ByteSize()


async def test_elements_are_a_repeated_field_in_their_order() -> None:
    bookings = [Booking(notes="x" * size) for size in (0, 1, 500, 70_000)]
    body = elements([booking.SerializeToString() for booking in bookings])
    assert list(ListBookingsResponse.FromString(body).bookings) == bookings


async def test_a_text_array_is_the_list(database_url: str) -> None:
    values = ["", "a", "NULL", "null", '"', "\\", '\\"', "{}", "{,}", " b ", "é\n\t'", "a,b", "%s"]
    async with await connect(database_url) as conn:
        for part in (values, values[:1], []):
            _, [(found,)] = await fetch_rows(conn, "SELECT %s::text[]", [text_array(part)])
            assert found == part


@pytest.mark.parametrize("run", LOOPS)
def test_a_cancelled_statement_ends_on_the_server_and_leaves_the_connection_usable(database_url: str, run: Run) -> None:
    async def cancel() -> None:
        async with await connect(database_url) as conn, await connect(database_url) as other:
            asleep = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"

            async def sleeping() -> bool:
                return bool((await other.execute(asleep, [conn.info.backend_pid])).rowcount)

            statement = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
            await until(sleeping)
            statement.cancel()
            with pytest.raises(asyncio.CancelledError):
                await statement
            assert not await sleeping()
            assert conn.pgconn.transaction_status == TransactionStatus.IDLE
            assert await (await conn.execute("SELECT 1")).fetchall() == [(1,)]

    run(cancel())


@pytest.mark.parametrize("run", LOOPS)
def test_more_than_the_socket_takes_at_once_goes_both_ways(database_url: str, run: Run) -> None:
    async def send() -> None:
        async with await connect(database_url) as conn:
            text = "x" * 8_000_000
            _, [(found,)] = await fetch_rows(conn, "SELECT %s::text", [text])
            assert found == text

    run(send())


@pytest.mark.parametrize("run", LOOPS)
def test_connections_that_the_server_ends_are_replaced(database_url: str, run: Run) -> None:
    async def end() -> None:
        database = Database(DatabaseSettings(url=SecretStr(database_url), connection_limit=2), "ended")
        await database.open()
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'ended'"

        async def usable() -> bool:
            try:
                async with database.connection() as conn, database.connection() as second:
                    await asyncio.gather(conn.execute("SELECT 1"), second.execute("SELECT 1"))
            except (psycopg.OperationalError, DatabaseUnavailable):  # the probe's connection was ended twice in a row
                return False
            return True

        async with await connect(database_url) as other:
            for _ in range(3):
                await other.execute(query)
                await until(usable)
        await database.close()

    run(end())
