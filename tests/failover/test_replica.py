"""Reads from a standby: never behind a write that was answered, whether it is paused, killed, promoted or behind."""

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from ops.servers import Postgres
from parlor.booking.v1 import booking_pb2
from parlor.ops.v1.ops_pb2 import InvalidateSalonRequest
from parlor.stats.v1 import stats_pb2
from tests.load import DAY, FIRST, all_connected, until
from tests.stack import SALON, Stack, booking_request, rows, running, salon
from tools.postgres_pair import Pair, hang, pair, wake

WRITES = 40
READS = int(os.environ.get("REPLICA_READS", "1600"))
CALLERS = 4
READS_PER_WRITE = 40
CHECKED = """
    SELECT FROM pg_stat_activity
    WHERE application_name = 'test-stats' AND query LIKE '%pg_last_wal_replay_lsn%' AND state_change > '{}'"""
NUMBERS = itertools.count(1)
PAST_THE_CACHE = (("cache-control", "no-cache"),)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Pair]:
    """A primary with an asynchronous standby."""
    with pair(tmp_path) as both:
        yield both


@asynccontextmanager
async def reading(both: Pair, redis_url: str) -> AsyncIterator[Stack]:
    """Run the services with the standby as their replica, and a salon."""
    async with running(both.primary.dsn, redis_url, replica_url=both.standby.dsn) as stack:
        await salon(stack)
        await until(lambda: is_used(stack))
        yield stack


def counters(stack: Stack, service: str = "stats") -> Any:
    return stack.servers[service].cache.counters


async def is_used(stack: Stack) -> bool:
    """Read figures that are not cached; return whether the replica answered."""
    before = counters(stack).replica_loads
    await bookings(stack, next(NUMBERS))
    return bool(counters(stack).replica_loads > before)


async def bookings(stack: Stack, number: int = 0) -> int:
    """Return the number of bookings of a period, which differs with each number."""
    request = stats_pb2.GetSalonStatsRequest(salon_id=SALON)
    request.start_time.seconds, request.end_time.seconds = FIRST - DAY - number, FIRST + 60 * DAY
    return (await stack.stats.GetSalonStats(request)).bookings


async def write(stack: Stack, number: int) -> None:
    await stack.booking.CreateBooking(booking_request(FIRST + 7200 * number))


async def check(stack: Stack, first: int) -> None:
    """Write bookings, and read their number after each."""
    for number in range(first, first + WRITES):
        await write(stack, number)
        assert await bookings(stack) == number + 1


@contextmanager
def following(_: Postgres) -> Iterator[None]:
    yield


@contextmanager
def paused(standby: Postgres) -> Iterator[None]:
    execute(standby.dsn, "SELECT pg_wal_replay_pause()")
    yield
    execute(standby.dsn, "SELECT pg_wal_replay_resume()")


@contextmanager
def behind(standby: Postgres) -> Iterator[None]:
    """Replay each commit 10 s late."""
    execute(standby.dsn, "ALTER SYSTEM SET recovery_min_apply_delay = '10s'", "SELECT pg_reload_conf()")
    yield
    execute(standby.dsn, "ALTER SYSTEM RESET recovery_min_apply_delay", "SELECT pg_reload_conf()")


@contextmanager
def killed(standby: Postgres) -> Iterator[None]:
    standby.kill()
    yield
    standby.start()


STATES: tuple[Callable[[Postgres], AbstractContextManager[None]], ...] = (following, paused, behind, killed)


async def test_figures_are_read_from_the_replica(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        await write(stack, 0)
        both.caught_up()
        assert await bookings(stack) == 1
        assert await is_used(stack)


async def test_pages_after_the_first_are_read_from_the_replica(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        await write(stack, 0)
        numbers = itertools.count(1)

        async def is_read() -> bool:
            number = next(numbers)
            await write(stack, number)
            both.caught_up()
            request = booking_pb2.ListBookingsRequest(salon_id=SALON, page_size=number)
            first = await stack.booking.ListBookings(request)
            await stack.servers["booking"].cache.settle()  # from here on the tag's writes are known
            before = counters(stack, "booking").replica_loads
            request.page_token = first.next_page_token
            second = await stack.booking.ListBookings(request)
            assert len(first.bookings) + len(second.bookings) == number + 1
            return bool(counters(stack, "booking").replica_loads > before)

        await until(is_read)


async def test_reads_past_the_cache_are_read_from_the_primary(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        before = counters(stack).replica_loads
        request = stats_pb2.GetSalonStatsRequest(salon_id=SALON)
        request.start_time.seconds, request.end_time.seconds = FIRST, FIRST + DAY
        await stack.stats.GetSalonStats(request, metadata=PAST_THE_CACHE)
        assert counters(stack).replica_loads == before


async def test_each_write_is_seen_at_once(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        before = counters(stack).replica_loads + counters(stack).replica_behind
        await check(stack, 0)
        assert counters(stack).replica_loads + counters(stack).replica_behind > before


async def test_each_write_is_seen_while_the_standby_does_not_replay(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        execute(both.standby.dsn, "SELECT pg_wal_replay_pause()")
        await check(stack, 0)
        execute(both.standby.dsn, "SELECT pg_wal_replay_resume()")
        await until(lambda: is_used(stack))
        await check(stack, WRITES)


async def test_no_read_is_stale_while_others_write(both: Pair, redis_url: str) -> None:
    """Checks REPLICA_READS reads, a quarter of them in each state of the standby; prints where they were answered."""
    begun = answered = 0  # writes

    async def call(stack: Stack) -> None:
        nonlocal begun, answered
        for turn in range(READS // len(STATES) // CALLERS):
            if turn % READS_PER_WRITE == 0:
                begun += 1
                await write(stack, begun - 1)
                answered += 1
            least = answered
            assert least <= await bookings(stack, next(NUMBERS)) <= begun

    async with reading(both, redis_url) as stack:
        for state in STATES:
            loads, sent_back = counters(stack).replica_loads, counters(stack).replica_behind
            with state(both.standby):
                async with asyncio.TaskGroup() as group:
                    for _ in range(CALLERS):
                        group.create_task(call(stack))
            loads, sent_back = counters(stack).replica_loads - loads, counters(stack).replica_behind - sent_back
            print(f"{state.__name__}: {READS // len(STATES)} reads, {loads} by the replica, {sent_back} sent back")
            await until(lambda: is_used(stack))
    assert answered == begun > len(STATES)


async def test_figures_that_no_write_invalidates_are_at_most_as_old_as_the_setting(both: Pair, redis_url: str) -> None:
    """Messages are counted by stats and invalidate nothing there: only the lag of the replica bounds its snapshot."""
    async with reading(both, redis_url) as stack:
        execute(both.standby.dsn, "SELECT pg_wal_replay_pause()")
        execute(both.primary.dsn, "SELECT pg_switch_wal()")  # something to replay

        async def is_left() -> bool:
            return not await is_used(stack)

        await until(is_left)


async def test_a_killed_standby_is_left_and_used_again(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        both.standby.kill()
        await check(stack, 0)
        await asyncio.to_thread(both.standby.start)
        await until(lambda: is_used(stack))
        await check(stack, WRITES)


async def test_a_promoted_standby_is_left(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        await asyncio.to_thread(both.standby.promote)
        execute(both.standby.dsn, *["SELECT pg_current_xact_id()"] * 200)  # numbers that the primary gives, too
        before = counters(stack).replica_loads
        await check(stack, 0)
        assert counters(stack).replica_loads == before


async def test_a_standby_of_another_cluster_is_never_used(both: Pair, redis_url: str, database_url: str) -> None:
    async with running(database_url, redis_url, replica_url=both.standby.dsn) as stack:
        await salon(stack)
        for _ in range(2):
            begun = rows(both.standby.dsn, "SELECT now()")[0][0]
            await until(lambda: bool(rows(both.standby.dsn, CHECKED.format(begun))))  # noqa: B023 - it ends here
        assert not await is_used(stack)
        assert counters(stack).replica_behind == 0


async def test_a_hung_standby_holds_no_caller(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        hang(both.standby)
        try:
            await check(stack, 0)
        finally:
            wake(both.standby)
        await until(lambda: is_used(stack))
        await check(stack, WRITES)


async def test_rows_changed_by_hand_are_read_after_invalidate_salon(both: Pair, redis_url: str) -> None:
    async with reading(both, redis_url) as stack:
        for number in range(3):
            await write(stack, number)
        await until(lambda: is_used(stack))
        assert await bookings(stack) == 3
        execute(both.standby.dsn, "SELECT pg_wal_replay_pause()")
        execute(both.primary.dsn, "DELETE FROM booking_events", "DELETE FROM bookings")
        for ops in stack.ops.values():
            await ops.InvalidateSalon(InvalidateSalonRequest(salon_id=SALON))
        for number in range(20):
            assert await bookings(stack, number) == 0


async def test_a_standby_of_another_line_of_history_is_not_used(both: Pair, redis_url: str, tmp_path: Path) -> None:
    """The primary is restored from a backup; the standby still has the commits that the backup lacks."""
    both.primary.stop()
    shutil.copytree(both.primary.data, tmp_path / "backup")
    both.primary.start()
    async with reading(both, redis_url) as stack:
        for number in range(WRITES):
            await write(stack, number)
        both.caught_up()
        both.primary.kill()
        await asyncio.to_thread(restore, both, tmp_path / "backup")

        async def is_back() -> bool:
            try:
                await salon(stack)  # the backup is older
                await bookings(stack, next(NUMBERS))
            except grpc.aio.AioRpcError:
                return False
            # A writer that has not joined the new epoch yet may be missed for one REDIS_POLL (docs/guarantees.md).
            return await all_connected(stack)

        await until(is_back)
        before = counters(stack).replica_loads
        await check(stack, 0)
        assert counters(stack).replica_loads == before


def restore(both: Pair, backup: Path) -> None:
    """Start the primary on a backup, as recovery to a point in time does: on a new timeline."""
    shutil.rmtree(both.primary.data)
    shutil.copytree(backup, both.primary.data)
    (both.primary.data / "recovery.signal").touch()
    with (both.primary.data / "postgresql.auto.conf").open("a") as settings:
        settings.write("restore_command = 'false'\n")
    both.primary.start()


def execute(url: str, *statements: str) -> None:
    """Run statements, each in a separate transaction."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())
