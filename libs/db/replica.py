"""A pool of connections to a standby, for reads whose snapshots the caller compares.

A standby may be behind, paused, or promoted. Its answer is used only if

- it had replayed all that the primary had written at a moment at most `DB_REPLICA_MAX_LAG` ms ago, and
- it was still a standby after the statement: transactions that a promoted one numbers itself mean other writes, and
- the snapshot of the statement shows every write that the caller must see. That is compared in libs/cache.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool

from libs.db.connection import Connection
from libs.db.pool import Database, DatabaseUnavailable, PoolExhausted, conninfo
from libs.db.settings import DatabaseSettings
from libs.db.statement import Statement
from libs.db.stats import QueryStats

T = TypeVar("T")

CHECK_SECONDS = 0.2
ANSWER_SECONDS = 1.0  # longest time of a check
WAIT_SECONDS = 0.05  # longest wait for a connection: the primary is there

WRITTEN = (
    "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, system_identifier FROM pg_control_system()"
)
REPLAYED = """
    SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint, system_identifier
    FROM pg_control_system() WHERE pg_is_in_recovery()"""
_IS_STANDBY = Statement("SELECT pg_is_in_recovery()::int", {}, lambda _, rows: bool(int(rows[0][0])))


class ReplicaAway(Exception):
    """The standby does not answer, or is none any more."""


class Replica:
    """The pool of one process."""

    def __init__(self, settings: DatabaseSettings, application_name: str, primary: Database) -> None:
        """Prepare; nothing connects before `open`."""
        self._settings = settings
        self._primary = primary
        self._max_lag = settings.replica_max_lag / 1000
        self._written: deque[tuple[float, int]] = deque()  # positions of the primary, and when they were read
        self._caught_up = float("-inf")  # when the primary was at the position that the standby has replayed
        self._task: asyncio.Task[None] | None = None
        self.queries = QueryStats(settings.slow_query_threshold / 1000)
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            conninfo(settings, application_name),
            connection_class=Connection,
            kwargs={"autocommit": True},
            configure=self._configure,
            min_size=min(2, settings.connection_limit),
            max_size=settings.connection_limit,
            timeout=WAIT_SECONDS,
            reconnect_timeout=1.0,
            open=False,
        )

    async def _configure(self, conn: Connection) -> None:
        conn.queries = self.queries
        conn.prepared_max = self._settings.statement_cache_size
        conn.prepare_threshold = 2 if self._settings.statement_cache_size and not self._settings.pgbouncer else None

    async def open(self) -> None:
        """Start connecting."""
        await self.pool.open(wait=False)
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Close all connections."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.pool.close()

    @property
    def usable(self) -> bool:
        """Whether it is at most DB_REPLICA_MAX_LAG ms behind."""
        return asyncio.get_running_loop().time() < self._caught_up + self._max_lag

    async def read(self, run: Callable[[Connection], Awaitable[T]]) -> T:
        """Return what `run` reads on a connection. Raises: ReplicaAway."""
        try:
            async with self.pool.connection() as conn:
                found = await run(conn)
                [is_standby] = await conn.run(_IS_STANDBY)
        except (psycopg.Error, OSError) as error:  # also conflicts with the replay: the primary has none
            raise ReplicaAway from error
        if not is_standby:
            raise ReplicaAway
        return found

    async def _watch(self) -> None:
        while True:
            with suppress(psycopg.Error, OSError, TimeoutError, DatabaseUnavailable, PoolExhausted):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._check()
            await asyncio.sleep(CHECK_SECONDS)

    async def _check(self) -> None:
        """Read the positions of both. A standby of another cluster, or none any more, has none."""
        now = asyncio.get_running_loop().time()
        async with self._primary.connection() as conn:
            [(written, system)] = await (await conn.execute(WRITTEN)).fetchall()
        self._written.append((now, written))
        async with self.pool.connection() as standby:
            rows = await (await standby.execute(REPLAYED)).fetchall()
        for replayed, of_system in rows:
            while of_system == system and self._written and self._written[0][1] <= replayed:
                self._caught_up, _ = self._written.popleft()
        while self._written and self._written[0][0] < now - self._max_lag:
            self._written.popleft()  # it would count no more
