"""A Postgres that accepts but never answers: no caller waits longer than the statement timeout plus 1 s."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import psycopg
import pytest
from pydantic import SecretStr

from libs.db import BEGIN, COMMIT, Connection, Database, DatabaseSettings, DatabaseUnavailable, Statement, no_result
from ops.servers import Postgres
from parlor.booking.v1 import booking_pb2 as pb
from tests.load import until
from tests.stack import SALON, booking_request, failure, running, salon
from tools.proxy import Proxy, proxy

QUERY_TIMEOUT_MS = 500
# 1 s over the timeout, twice the interval of checks, and 3 s more for a COMMIT, which waits until Postgres is known to
# be away; the rest is for a busy machine.
LONGEST_SECONDS = 0.5 + 1 + 1 + 3 + 2.5

Send = Callable[[Connection], Awaitable[Any]]
WAYS: dict[str, Send] = {
    "a fetch": lambda conn: conn.fetch("SELECT $1::text", ["a"]),
    "a cursor": lambda conn: conn.execute("SELECT 1"),
    "statements together": lambda conn: conn.run(BEGIN, Statement("SELECT %(a)s::text", {"a": "a"}, no_result)),
    "a commit": lambda conn: conn.run(COMMIT),
}


@pytest.fixture
async def between(postgres: Postgres) -> AsyncIterator[Proxy]:
    """A proxy to Postgres that can discard everything."""
    async with proxy(postgres.port) as between:
        yield between


@pytest.fixture
def url(postgres: Postgres, between: Proxy, database_url: str) -> Iterator[str]:
    """The URL of the test's database, through the proxy."""
    yield database_url.replace(str(postgres.port), str(between.port))


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Database]:
    """Open a pool."""
    database = Database(DatabaseSettings(url=SecretStr(url), **settings), "test")
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@pytest.mark.parametrize("send", WAYS.values(), ids=WAYS)
async def test_a_statement_over_its_timeout_ends_without_an_answer(url: str, between: Proxy, send: Send) -> None:
    async with opened(url, query_timeout=QUERY_TIMEOUT_MS) as database:
        async with database.connection() as conn:
            await send(conn)
            await conn.rollback()
            between.blackhole = True
            began = time.monotonic()
            with pytest.raises(psycopg.OperationalError):
                await send(conn)
            assert 0.9 < time.monotonic() - began < LONGEST_SECONDS
        await until(lambda: not database.available, LONGEST_SECONDS)
        with pytest.raises(DatabaseUnavailable):
            await database.acquire()
        between.blackhole = False
        between.reset()
        await until(lambda: database.available)
        async with database.connection() as conn:
            await send(conn)


async def test_all_callers_of_a_shared_load_fail_in_time(url: str, between: Proxy, redis_url: str) -> None:
    database = {"query_timeout": QUERY_TIMEOUT_MS}
    async with running(url, redis_url, database=database) as stack:
        await salon(stack, resources=())
        await stack.booking.CreateBooking(booking_request())
        between.blackhole = True
        began = time.monotonic()
        request = pb.ListBookingsRequest(salon_id=SALON)
        errors = await asyncio.gather(*(failure(stack.booking.ListBookings(request)) for _ in range(20)))
        assert {error.code for error in errors} == {grpc.StatusCode.UNAVAILABLE}
        assert time.monotonic() - began < LONGEST_SECONDS
        between.blackhole = False
        between.reset()
        async with asyncio.timeout(5):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    assert len((await stack.booking.ListBookings(request, timeout=2)).bookings) == 1
                    break


async def test_a_call_to_a_hanging_server_can_be_canceled(url: str, between: Proxy) -> None:
    async with opened(url) as database, database.connection() as conn:
        await conn.execute("SELECT 1")
        between.blackhole = True
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await conn.execute("SELECT 1")
        assert time.monotonic() - began < 4  # one attempt to cancel it, without a wait for the answer


async def test_a_slow_statement_within_its_timeout_succeeds(database_url: str) -> None:
    async with opened(database_url, query_timeout=2000) as database, database.connection() as conn:
        await conn.execute("SELECT pg_sleep(1.5)")


async def test_a_pool_closes_while_its_server_hangs(url: str, between: Proxy) -> None:
    database = Database(DatabaseSettings(url=SecretStr(url)), "test")
    await database.open()
    between.blackhole = True
    began = time.monotonic()
    await database.close()
    assert time.monotonic() - began < 6
