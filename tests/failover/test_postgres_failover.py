"""A primary and its standby: commits that wait, and servers that hang, are promoted and come back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from pydantic import SecretStr

from libs.db import Database, DatabaseSettings
from parlor.booking.v1 import booking_pb2
from tests.load import DAY, FIRST, until
from tests.stack import Stack, booking_request, message_request, running, salon
from tools.postgres_pair import Pair, hang, pair, wake

DEADLINE_SECONDS = 0.7
# ABORTED means COMMIT_UNKNOWN for a request without a request_id.
FAILED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Pair]:
    """A primary with an asynchronous standby."""
    with pair(tmp_path) as both:
        yield both


@pytest.fixture
def synchronous(tmp_path: Path) -> Iterator[Pair]:
    """A primary whose commits wait for its standby."""
    with pair(tmp_path, synchronous=True) as both:
        yield both


@asynccontextmanager
async def served(both: Pair, redis_url: str) -> AsyncIterator[Stack]:
    """Run the services on both hosts, with a salon."""
    async with running(both.url(), redis_url) as stack:
        await salon(stack)
        yield stack


async def count(dsn: str, query: str, *values: Any) -> int:
    """Return the number of rows that a query finds."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        return len(await (await conn.execute(query.encode(), values)).fetchall())


async def committing(both: Pair, number: int) -> bool:
    """Return whether `number` commits of the services wait for the standby."""
    query = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename LIKE 'parlor%%'"
    return await count(both.primary.dsn, query) == number


CALLS: dict[str, Callable[[Stack], tuple[Any, Any]]] = {
    "CreateBooking": lambda stack: (stack.booking.CreateBooking, booking_request(FIRST, request_id=str(uuid4()))),
    "RecordMessage": lambda stack: (stack.messaging.RecordMessage, message_request(request_id=str(uuid4()))),
}


@pytest.mark.parametrize("name", ["CreateBooking", "RecordMessage"])
async def test_a_deadline_does_not_cancel_a_commit_that_waits_for_the_standby(
    synchronous: Pair, redis_url: str, name: str
) -> None:
    async with served(synchronous, redis_url) as stack:
        rpc, request = CALLS[name](stack)
        hang(synchronous.standby)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await rpc(request, timeout=DEADLINE_SECONDS)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert await committing(synchronous, 1)
        with pytest.raises(grpc.aio.AioRpcError):  # the repeat waits for the first call, or for the standby
            await rpc(request, timeout=DEADLINE_SECONDS)
        wake(synchronous.standby)
        await until(lambda: committing(synchronous, 0))
        first, again = await rpc(request), await rpc(request)
        assert first == again


async def test_a_canceled_call_does_not_cancel_its_commit(synchronous: Pair, redis_url: str) -> None:
    async with served(synchronous, redis_url) as stack:
        rpc, request = CALLS["CreateBooking"](stack)
        hang(synchronous.standby)
        call = rpc(request)
        await until(lambda: committing(synchronous, 1))
        call.cancel()
        await asyncio.sleep(0.3)
        assert await committing(synchronous, 1)
        wake(synchronous.standby)
        await until(lambda: committing(synchronous, 0))
        assert (await rpc(request)).booking_code


async def test_commits_whose_callers_left_use_at_most_half_of_the_pool(synchronous: Pair, redis_url: str) -> None:
    async with running(synchronous.url(), redis_url) as stack:
        for number in range(6):
            await salon(stack, salon_id=f"s{number}", phone_number_id=str(number))
        hang(synchronous.standby)
        calls = [
            stack.booking.CreateBooking(
                booking_request(FIRST + at * DAY, salon_id=f"s{number}"), timeout=DEADLINE_SECONDS
            )
            for number in range(6)
            for at in range(5)
        ]
        failed = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, grpc.aio.AioRpcError) for each in failed)
        pool = stack.servers["booking"].database
        listed = await stack.booking.ListSalons(booking_pb2.ListSalonsRequest(), timeout=5)
        assert len(listed.salons) == 6
        assert pool.available
        wake(synchronous.standby)
        await until(lambda: committing(synchronous, 0))


@pytest.mark.parametrize("wakes", ["before the next write", "after the next write"])
async def test_a_resumed_old_primary_gets_no_writes(replicated: Pair, redis_url: str, wakes: str) -> None:
    async with served(replicated, redis_url) as stack:
        made = [(await stack.booking.CreateBooking(booking_request(FIRST + n * DAY))).booking_code for n in range(3)]
        replicated.caught_up()
        hang(replicated.primary)
        replicated.standby.promote()
        promoted = time.monotonic()
        if wakes == "before the next write":
            wake(replicated.primary)
        at = 3
        while True:
            try:
                reply = await stack.booking.CreateBooking(booking_request(FIRST + at * DAY), timeout=2)
                if await count(
                    replicated.standby.dsn, "SELECT FROM bookings WHERE booking_code = %s", reply.booking_code
                ):
                    break
                made.append(reply.booking_code)  # answered by the old primary before the promotion was visible
            except grpc.aio.AioRpcError as error:
                assert error.code() in FAILED
            at += 1
        assert time.monotonic() - promoted < 10
        wake(replicated.primary)
        await asyncio.sleep(1.5)
        later = [
            (await stack.booking.CreateBooking(booking_request(FIRST + (at + n) * DAY))).booking_code
            for n in range(1, 30)
        ]
        found = "SELECT FROM bookings WHERE booking_code = ANY(%s)"
        assert await count(replicated.standby.dsn, found, later) == len(later)
        assert await count(replicated.primary.dsn, found, later) == 0
        query = "SELECT FROM pg_stat_activity WHERE usename = 'parlor_booking' AND application_name = 'test-booking'"
        await until(lambda: few(replicated.primary.dsn, query))


async def few(dsn: str, query: str) -> bool:
    """Return whether only the connection that checks the role of the host is left."""
    return await count(dsn, query) <= 1


async def test_a_standby_replaces_a_killed_primary(synchronous: Pair, redis_url: str) -> None:
    async with served(synchronous, redis_url) as stack:
        made = [(await stack.booking.CreateBooking(booking_request(FIRST + n * DAY))).booking_code for n in range(5)]
        synchronous.primary.kill()
        synchronous.standby.promote()
        promoted, at = time.monotonic(), 5
        while True:
            try:
                await stack.booking.CreateBooking(booking_request(FIRST + at * DAY), timeout=2)
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() in FAILED
                await asyncio.sleep(0.05)
        assert time.monotonic() - promoted < 5
        found = "SELECT FROM bookings WHERE booking_code = ANY(%s)"
        assert await count(synchronous.standby.dsn, found, made) == 5


@pytest.mark.parametrize("silent_first", [True, False])
async def test_a_host_that_accepts_and_never_answers_delays_no_caller(replicated: Pair, silent_first: bool) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    hosts = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}", f"127.0.0.1:{replicated.primary.port}"]
    url = f"postgresql://postgres@{','.join(hosts if silent_first else reversed(hosts))}/parlor"
    database = Database(DatabaseSettings(url=SecretStr(url)), "test")
    begun = time.monotonic()
    await database.open()
    try:
        assert database.available
        assert time.monotonic() - begun < 6
        async with database.connection() as conn:
            [row] = await (await conn.execute("SELECT 1")).fetchall()
            assert row == (1,)
    finally:
        await database.close()
        server.close()
