"""Keeps the hourly sums of messages, conversations and AI messages up to date (migration 0022, decision 0061).

A reader adds the sums of whole hours to the deltas of later changes, and reads the rows before the first whole hour and
after `sealed_to`. That is exact at every moment, because each run takes these steps in this order:

1. publish: a later horizon. From now on a write of a row older than it leaves a delta.
2. barrier: wait for the transactions that may not have seen the horizon. Their IDs are below the barrier's.
3. seal: one statement sums the rows up to that horizon and deletes the deltas that it sees: it sees their rows, too.
4. fold: one statement adds the other deltas of sealed hours to the sums and deletes them.

Each step is one transaction with one changing statement, under a lock that only one run can hold. A run may be killed
anywhere; the next one starts again at the first step.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

import psycopg
import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg import AsyncConnection

from libs.db import DatabaseUnavailable, PoolExhausted
from services.messaging.rollup_queries import (
    FOLDS,
    RollupBusy,
    fold_deltas,
    is_passed,
    publish,
    seal,
    sealed_seconds,
    take_barrier,
)

EVERY_SECONDS = 600  # statistics read the rows of this time: an hour of a busy salon costs as much as a month of sums
FIRST_SECONDS = 10  # after the start: the transactions of a run keep loads from being cached, as every writer does
LAG_MINUTES = 5  # statuses and retried webhooks of the last minutes need no delta
BARRIER_SECONDS = 60.0  # then the run ends: some transaction stays open, and the next run tries again

Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]

log = structlog.get_logger()


class Progress(NamedTuple):
    """What a run did: the rows older than `sealed_to` are summed; `folded` is the number of deltas folded."""

    sealed_to: datetime
    folded: int


class Rollups(Collector):
    """The background job that advances the sums. Any process may run it at any time, also several at once.

    It is also the collector of its metric.
    """

    def __init__(self, connect: Connect, barrier_seconds: float = BARRIER_SECONDS) -> None:
        """Prepare; `connect` lends connections in autocommit mode."""
        self._connect = connect
        self._barrier_seconds = barrier_seconds
        self._sealed_seconds = 0.0

    async def run(self) -> None:
        """Advance after FIRST_SECONDS and every EVERY_SECONDS, until canceled."""
        await asyncio.sleep(FIRST_SECONDS)
        while True:
            for step in (self.advance, self._measure):  # a run that fails is measured, too: others may have advanced
                try:
                    await step()
                except (DatabaseUnavailable, PoolExhausted, RollupBusy, psycopg.Error) as error:
                    log.warning("rollups", error=repr(error))
            await asyncio.sleep(EVERY_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric. It is a time, not an age: that of a job which fails or hangs stands still."""
        text = "The hourly sums include the rows before this Unix time, in s; 0 before the first run has ended"
        yield GaugeMetricFamily("parlor_rollups_sealed_time_seconds", text, value=self._sealed_seconds)

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
            for fold in FOLDS:
                while rows := await fold_deltas(conn, fold):
                    folded += rows
        return Progress(sealed_to, folded)

    async def _measure(self) -> None:
        async with self._connect() as conn:
            self._sealed_seconds = await sealed_seconds(conn)

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
