"""A pool of connections to a standby, for reads whose snapshots the caller compares.

A standby may be behind, paused, hung, promoted, or of another line of history. Its answer is used only if

- it had replayed all that the primary had written at a moment at most `DB_REPLICA_MAX_LAG` ms ago, and
- it was still a standby after the statement: a promoted one gives its own numbers to transactions, and
- it has the epoch of the cache (0030): after a failover that lost commits, and after a restore, the new primary has
  another one, which a standby of the old line never gets, and
- the snapshot of the statement shows every write that the caller must see.

The caller compares the last two (libs/cache).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool

from libs.db.connection import Connection
from libs.db.hosts import Probe
from libs.db.pool import Database, DatabaseUnavailable, conninfo
from libs.db.settings import DatabaseSettings
from libs.db.statement import Statement
from libs.db.stats import QueryStats

T = TypeVar("T")

CHECK_SECONDS = 0.2
ANSWER_SECONDS = 1.0  # longest time of a check
WAIT_SECONDS = 0.05  # longest wait for a connection: the primary is there
READ_SECONDS = 2.0  # longest time of a read: a hung standby must not hold the callers

WRITTEN = (
    "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, system_identifier FROM pg_control_system()"
)
REPLAYED = """
    SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint, system_identifier
    FROM pg_control_system() WHERE pg_is_in_recovery()"""
_EPOCH = Statement(
    "SELECT epoch FROM cache_in_force WHERE pg_is_in_recovery()", {}, lambda _, rows: rows[0][0] if rows else None
)


class ReplicaAway(Exception):
    """The standby does not answer, or is none any more."""


class Replica:
    """The pool of one process."""

    def __init__(self, settings: DatabaseSettings, application_name: str, primary: Database) -> None:
        """Prepare; nothing connects before `open`."""
        self._settings = settings
        self._primary = primary
        self._max_lag = settings.replica_max_lag / 1000
        self._conninfo = conninfo(settings, application_name)
        self._probes: dict[str, Probe] = {}  # by connection string
        self._history = primary.history
        self._written: deque[tuple[float, int]] = deque()  # positions of the primary, and when they were read
        self._caught_up = float("-inf")  # when the primary was at the position that the standby has replayed
        self._task: asyncio.Task[None] | None = None
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self._conninfo,
            connection_class=Connection,
            kwargs={"autocommit": True, "prepare_threshold": None},
            configure=self._configure,
            min_size=min(2, settings.connection_limit),
            max_size=settings.connection_limit,
            timeout=WAIT_SECONDS,
            reconnect_timeout=1.0,
            open=False,
        )

    async def _configure(self, conn: Connection) -> None:
        conn.queries = self._primary.queries
        conn.most_prepared = 0 if self._settings.pgbouncer else self._settings.statement_cache_size

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

    async def read(self, run: Callable[[Connection], Awaitable[T]]) -> tuple[T, str]:
        """Return what `run` reads on a connection, and the epoch of the standby. Raises: ReplicaAway."""
        try:
            async with self.pool.connection() as conn:
                timer = asyncio.get_running_loop().call_later(READ_SECONDS, conn.hang_up)
                try:
                    found = await run(conn)
                    [epoch] = await conn.run(_EPOCH)
                finally:
                    timer.cancel()
        except (psycopg.Error, OSError) as error:  # also conflicts with the replay: the primary has none
            raise ReplicaAway from error
        if epoch is None:
            raise ReplicaAway
        return found, epoch if isinstance(epoch, str) else bytes(epoch).decode()

    async def _watch(self) -> None:
        try:
            while True:
                with suppress(psycopg.Error, OSError, TimeoutError, DatabaseUnavailable):
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await self._check()
                await asyncio.sleep(CHECK_SECONDS)
        finally:
            await self._forget_probes()

    async def _check(self) -> None:
        """Read the positions of both. A standby of another cluster, or none any more, has none."""
        if self._history is not self._primary.history:  # positions of another primary mean nothing
            self._history = self._primary.history
            self._written.clear()
            self._caught_up = float("-inf")
            await self._forget_probes()
        now = asyncio.get_running_loop().time()
        [(written, system)] = await self._ask(self._primary.primary_conninfo, WRITTEN)
        self._written.append((now, written))
        for replayed, of_system in await self._ask(self._conninfo, REPLAYED):
            while of_system == system and self._written and self._written[0][1] <= replayed:
                self._caught_up, _ = self._written.popleft()
        while self._written and self._written[0][0] < now - self._max_lag:
            self._written.popleft()  # it would count no more

    async def _ask(self, server: str, query: str) -> list[Any]:
        """Run a query on a connection that no caller waits for; a new one if the last one failed."""
        try:
            if server not in self._probes:
                self._probes[server] = await Probe.connect(server, autocommit=True, prepare_threshold=None)
                self._probes[server].queries = QueryStats(threshold=float("inf"))
            return await (await self._probes[server].execute(query.encode())).fetchall()
        except BaseException:
            if (probe := self._probes.pop(server, None)) is not None:
                await probe.close()
            raise

    async def _forget_probes(self) -> None:
        while self._probes:
            await self._probes.popitem()[1].close()
