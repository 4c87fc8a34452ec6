"""The epoch: one row in Postgres, `cache_in_force`, that says which cache counts.

After a failover two servers may both call themselves master, and each process reaches only one of them. The row names
the servers whose records count, and an epoch. A process that has connected to other servers replaces the row with a new
epoch. Version records carry the epoch under which they were written, and count as missing under any other: a new epoch
drops everything at once. docs/decisions/0030 says why each step is needed.
"""

import asyncio
import random
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import psycopg
import structlog

from libs.cache.lease import DRIFT, now

# A process whose cache was replaced waits this long, up to twice, before it puts its own in force again: if both sides
# did so at once, neither would have a cache.
PAUSE_SECONDS = 5.0

# System identifier and timeline. The timeline is that of the WAL being written: pg_control_checkpoint() names the old
# one for a while after a promotion.
HISTORY = """(SELECT system_identifier::text FROM pg_control_system())
    || '/' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8)"""

log = structlog.get_logger()

Connect = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]


class NotInForceError(Exception):
    """Another cache is in force, or the database has another history than the cache."""


class Row(NamedTuple):
    """The row, and the history of the database now."""

    epoch: str
    servers: str
    history: str
    settled: bool
    current: str


class Epochs:
    """Reads and replaces the row for one process. A `read_only` one uses what others have put in force.

    With a `lease`, in s, a new epoch is used once all leases of earlier epochs have ended.
    """

    def __init__(self, connect: Connect, lease: float | None, *, read_only: bool) -> None:
        """Prepare; nothing is read yet."""
        self._connect = connect
        self._lease = lease
        self._read_only = read_only
        self._epoch = ""  # the last epoch that this process used
        self._displaced_by = ""
        self._waits_until = 0.0

    async def join(self, servers: str) -> str:
        """Put these servers in force if they are not, and return their epoch.

        Raises: NotInForceError if this process may not do so now; what `connect` raises; psycopg.Error.
        """
        async with self._connect() as conn:
            row = await self._read(conn)
            is_settled = row.settled
            if (row.servers, row.history) == (servers, row.current):
                epoch = row.epoch
            else:
                self._may_replace(row, servers)
                epoch, is_settled = secrets.token_hex(4), self._lease is None or not row.epoch  # no lease can exist
                await self._replace(conn, row, epoch, servers, settled=is_settled)
        if self._lease is not None and not is_settled:
            await asyncio.sleep(self._lease * (1 + DRIFT))
            await self._settle(epoch)
        self._epoch = epoch
        return epoch

    async def confirm(self, conn: psycopg.AsyncConnection[Any], epoch: str) -> None:
        """Return if an epoch is in force for the database as it is. Raises: NotInForceError; psycopg.Error."""
        row = await self._read(conn)
        if row.epoch != epoch:
            raise NotInForceError("another cache is in force")
        if row.history != row.current:
            raise NotInForceError("the database has another history")

    async def _read(self, conn: psycopg.AsyncConnection[Any]) -> Row:
        query = f"SELECT epoch, servers, history, settled, {HISTORY} FROM cache_in_force"  # noqa: S608 - a constant
        [row] = await (await conn.execute(query.encode())).fetchall()
        return Row(*row)

    def _may_replace(self, row: Row, servers: str) -> None:
        """Return if this process may replace the row now. Raises: NotInForceError."""
        if self._read_only:
            raise NotInForceError("another cache is in force, and this process may only read")
        if row.servers == servers or self._epoch in ("", row.epoch):
            return
        if self._displaced_by != row.epoch:
            self._displaced_by = row.epoch
            self._waits_until = now() + PAUSE_SECONDS * random.uniform(1, 2)  # noqa: S311
        if now() < self._waits_until:
            raise NotInForceError("another cache has been put in force")

    async def _replace(
        self, conn: psycopg.AsyncConnection[Any], row: Row, epoch: str, servers: str, *, settled: bool
    ) -> None:
        cursor = await conn.execute(
            "UPDATE cache_in_force SET epoch = %s, servers = %s, history = %s, settled = %s WHERE epoch = %s",
            (epoch, servers, row.current, settled, row.epoch),
        )
        if not cursor.rowcount:
            raise NotInForceError("another process has put a cache in force at the same time")
        log.info("cache in force", epoch=epoch, servers=servers, instead_of=row.servers, history=row.current)

    async def _settle(self, epoch: str) -> None:
        """Note that all leases of earlier epochs have ended, if the row still has this epoch."""
        async with self._connect() as conn:
            if not self._read_only:
                await conn.execute("UPDATE cache_in_force SET settled = true WHERE epoch = %s", (epoch,))
            await self.confirm(conn, epoch)
