"""Keeps the hourly sums of messages, conversations and AI messages up to date (migration 0022, decision 0061).

A reader adds the sums of whole hours to the deltas of later changes, and reads the rows before the first whole hour and
after `sealed_to`. That is exact at every moment, because each run takes these steps in this order:

1. publish: a later horizon. From now on a write of a row older than it leaves a delta.
2. barrier: wait for the transactions that may not have seen the horizon. Their IDs are below the barrier's.
3. seal: one statement sums the rows up to that horizon and deletes the deltas that it sees, since it sees their rows too.
4. fold: one statement adds the other deltas of sealed hours to the sums and deletes them.

Each step is one transaction with one changing statement, under a lock that only one run can hold. A run may be killed
anywhere; the next one starts again at the first step.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

import psycopg
import structlog
from psycopg import AsyncConnection

from libs.db import DatabaseUnavailable, PoolExhausted
from services.messaging import rollup_statements as statements

EVERY_SECONDS = 600  # a statistic reads the rows of about this time; an hour of a busy salon takes longer than its month
LAG_MINUTES = 5  # statuses and retried webhooks of the last minutes need no delta
BARRIER_SECONDS = 60.0  # then the run ends: some transaction stays open, and the next run tries again
PIECE_DAYS = 7  # of one seal: a transaction with an ID keeps loads from being cached while it is open
FOLD_ROWS = 50_000  # of one fold

Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]

log = structlog.get_logger()


class RollupBusy(Exception):
    """A transaction with an older ID did not end in time, or another run held the lock."""


class Progress(NamedTuple):
    """What a run did: the rows older than `sealed_to` are summed; `folded` is the number of deltas folded."""

    sealed_to: datetime
    folded: int


class Rollups:
    """The background job that advances the sums. Any process may run it at any time, also several at once."""

    def __init__(self, connect: Connect, barrier_seconds: float = BARRIER_SECONDS) -> None:
        """Prepare; `connect` lends connections in autocommit mode."""
        self._connect = connect
        self._barrier_seconds = barrier_seconds

    async def run(self) -> None:
        """Advance now and every EVERY_SECONDS, until canceled."""
        while True:
            try:
                await self.advance()
            except (DatabaseUnavailable, PoolExhausted, RollupBusy, psycopg.Error) as error:
                log.warning("rollups", error=repr(error))
            await asyncio.sleep(EVERY_SECONDS)

    async def advance(self, lag_minutes: int = LAG_MINUTES) -> Progress:
        """Take all steps: sum what is older than `lag_minutes`.

        Raises: RollupBusy; psycopg.Error; what `connect` raises.
        """
        async with self._connect() as conn:
            horizon = await publish(conn, lag_minutes)
            barrier = await take_barrier(conn)
        await self._wait(barrier)
        async with self._connect() as conn:
            while (sealed_to := await seal(conn, horizon)) < horizon:
                pass
            folded = 0
            for fold in statements.FOLDS:
                while rows := await fold_deltas(conn, fold):
                    folded += rows
        return Progress(sealed_to, folded)

    async def _wait(self, barrier: int) -> None:
        """Return when every transaction with an ID up to the barrier's has ended. Raises: RollupBusy."""
        ends, pause = time.monotonic() + self._barrier_seconds, 0.01
        while True:
            async with self._connect() as conn:
                if await is_passed(conn, barrier):
                    return
            if time.monotonic() > ends:
                raise RollupBusy(f"a transaction is open for more than {self._barrier_seconds:.0f} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)


async def publish(conn: AsyncConnection[Any], lag_minutes: int) -> datetime:
    """Set the horizon to `lag_minutes` ago, unless it is later already; return it."""
    async with alone(conn):
        cursor = await conn.execute(statements.PUBLISH.encode(), {"lag": lag_minutes})
        [(horizon,)] = await cursor.fetchall()
    return horizon  # type: ignore[no-any-return]


async def take_barrier(conn: AsyncConnection[Any]) -> int:
    """Return a new transaction ID. Call it after `publish` has committed, outside of a transaction."""
    [(barrier,)] = await (await conn.execute(b"SELECT pg_current_xact_id()::text::bigint")).fetchall()
    return int(barrier)


async def is_passed(conn: AsyncConnection[Any], barrier: int) -> bool:
    """Return whether all transactions with an ID up to `barrier` have ended."""
    query = b"SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > %s"
    [(passed,)] = await (await conn.execute(query, [barrier])).fetchall()
    return bool(passed)


async def seal(conn: AsyncConnection[Any], horizon: datetime) -> datetime:
    """Sum the next PIECE_DAYS that have rows, up to `horizon`; return how far rows are summed now.

    The barrier taken after this horizon was published must have passed.
    Source: indexes conversations_pkey (one entry for each salon), idx_messages_salon_created,
    idx_conversations_salon_started, idx_ai_messages_salon_created.
    """
    async with alone(conn):
        params: dict[str, Any] = {"horizon": horizon, "days": PIECE_DAYS}
        [(end,)] = await (await conn.execute(statements.NEXT_END.encode(), params)).fetchall()
        await conn.execute(statements.SEAL.encode(), {"end": end})
    return end  # type: ignore[no-any-return]


async def fold_deltas(conn: AsyncConnection[Any], fold: str) -> int:
    """Run one of `statements.FOLDS`: add up to FOLD_ROWS deltas of sealed hours to the sums; return how many."""
    async with alone(conn):
        [(rows,)] = await (await conn.execute(fold.encode(), {"rows": FOLD_ROWS})).fetchall()
    return int(rows)


@asynccontextmanager
async def alone(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """Run a transaction that no other run's overlaps. Readers and writers don't wait for it.

    LOCK takes no snapshot, so that of the next statement sees all that the run before it did.
    Raises: RollupBusy if another run holds the lock for 10 s.
    """
    async with conn.transaction():
        await conn.execute(b"SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        await conn.execute(b"SET LOCAL lock_timeout = '10s'")
        await conn.execute(b"SET LOCAL statement_timeout = '10min'")
        try:
            await conn.execute(b"LOCK TABLE rollups IN SHARE UPDATE EXCLUSIVE MODE")
        except psycopg.errors.LockNotAvailable:
            raise RollupBusy("another run holds the lock") from None
        yield
