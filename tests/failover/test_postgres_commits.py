"""Commits that wait for a synchronous standby, and events that end the wait before they are replicated."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest

from tests.load import FIRST, until
from tests.stack import Stack, booking_request, failure, message_request, rows, running, salon
from tools.postgres_pair import Pair, hang, pair, wake

WAITING = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND usename LIKE 'parlor%'"
BOOKINGS = "SELECT count(*) FROM bookings"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Pair]:
    """A primary whose commits wait for its standby."""
    with pair(tmp_path, synchronous=True) as both:
        yield both


@asynccontextmanager
async def waiting(both: Pair, redis_url: str, call: Callable[[Stack], Awaitable[Any]], **database: int) -> Any:
    """Run the services with a call whose commit waits for a hanging standby; yield both."""
    async with running(both.url(), redis_url, database=database) as stack:
        await salon(stack)
        hang(both.standby)
        first = asyncio.ensure_future(call(stack))
        await until(lambda: bool(rows(both.primary.dsn, "SELECT " + WAITING)))
        yield stack, first
        wake(both.standby)


def send(request: Any) -> Callable[[Stack], Awaitable[Any]]:
    """Return a function that sends a request for a booking."""
    return lambda stack: stack.booking.CreateBooking(request)


@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_wait_canceled_by_an_operator_is_an_error_and_its_repeat_waits(
    both: Pair, redis_url: str, function: str
) -> None:
    request = booking_request(FIRST, request_id=str(uuid4()))
    async with waiting(both, redis_url, send(request)) as (stack, first):
        rows(both.primary.dsn, f"SELECT {function}(pid) {WAITING}")
        error = await failure(first)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "COMMIT_UNKNOWN")
        assert rows(both.primary.dsn, BOOKINGS) == [(1,)]  # visible, but not replicated
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stack.booking.CreateBooking(request, timeout=1)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wake(both.standby)
        booking = await stack.booking.CreateBooking(request, timeout=10)
        assert rows(both.standby.dsn, "SELECT booking_code FROM bookings") == [(booking.booking_code,)]


async def test_a_canceled_wait_without_a_request_id_may_not_be_repeated(both: Pair, redis_url: str) -> None:
    async with waiting(both, redis_url, lambda stack: stack.messaging.RecordMessage(message_request())) as (_, first):
        rows(both.primary.dsn, f"SELECT pg_cancel_backend(pid) {WAITING}")
        error = await failure(first)
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "COMMIT_UNKNOWN")


async def test_removing_the_standby_ends_the_wait_with_success(both: Pair, redis_url: str) -> None:
    async with waiting(both, redis_url, send(booking_request(FIRST))) as (_, first):
        with psycopg.connect(both.primary.dsn, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            conn.execute("SELECT pg_reload_conf()")
        assert (await first).booking_code


async def test_a_commit_may_wait_longer_than_a_statement(both: Pair, redis_url: str) -> None:
    async with waiting(both, redis_url, send(booking_request(FIRST)), query_timeout=300) as (_, first):
        await asyncio.sleep(2.5)
        assert not first.done()
        assert rows(both.primary.dsn, "SELECT count(*) " + WAITING) == [(1,)]
        wake(both.standby)
        assert (await first).booking_code


async def test_a_crash_loses_no_acknowledged_write_of_callers_with_deadlines(both: Pair, redis_url: str) -> None:
    async with running(both.url(), redis_url) as stack:
        await salon(stack)
        acknowledged: list[str] = []
        requests = [booking_request(FIRST + n * 3600, request_id=str(uuid4())) for n in range(12)]

        async def insist(request: Any) -> None:
            for _ in range(4):
                try:
                    acknowledged.append((await stack.booking.CreateBooking(request, timeout=0.4)).booking_code)
                    return
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*map(insist, requests[:4]))
        assert len(acknowledged) == 4
        hang(both.standby)
        await asyncio.gather(*map(insist, requests[4:]))
        assert len(acknowledged) == 4
        both.primary.kill()
        wake(both.standby)
        both.standby.promote()
        promoted = time.monotonic()
        while len(acknowledged) < 12 and time.monotonic() - promoted < 20:
            await asyncio.gather(*map(insist, requests[4:]))
        kept = {code for (code,) in rows(both.standby.dsn, "SELECT booking_code FROM bookings")}
        assert kept == set(acknowledged)
        assert len(kept) == 12
