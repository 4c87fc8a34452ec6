"""Keeps the store usable: connects, polls, and registers the invalidation outbox.

A write without Redis leaves its tags in the outbox, in its own transaction. Every process registers the tags that it
finds there, and only then deletes the rows. A process that lost Redis serves no hit until it has registered all rows
that were there after Redis came back.

With `REDIS_WITHOUT=wait` it also holds the process's read lease, and lets a writer wait until no lease hides its write.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import psycopg
import structlog

from libs.cache import lease, outbox
from libs.cache.batcher import Batcher
from libs.cache.epoch import Epochs, NotInForceError
from libs.cache.lease import ReadLease
from libs.cache.outbox import OutboxRow
from libs.cache.store import Store
from libs.cache.topology import reason

RETRY_SECONDS = 0.1
CHECK_SECONDS = 0.05  # how often waiting writers check whether their rows are gone
POLLS_PER_LEASE = 3
MAX_AWAITED = 256  # rows that a writer checks; with more it waits until the leases have ended

log = structlog.get_logger()


class Recovery:
    """The background task of a cache; only it declares a store ready."""

    def __init__(
        self,
        store: Store,
        connect: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]],
        poll_seconds: float,
        *,
        read_only: bool,
        leases: bool = False,
    ) -> None:
        """Prepare; nothing runs before `open`. With `leases`, `poll_seconds` is the length of a lease.

        A `read_only` process deletes no rows and puts no epoch in force.
        """
        self.lease = ReadLease(poll_seconds) if leases else None
        self._store = store
        self._connect = connect
        self._epochs = Epochs(connect, poll_seconds if leases else None, read_only=read_only)
        self._poll_seconds = poll_seconds / POLLS_PER_LEASE if leases else poll_seconds
        self._batcher = Batcher()
        self._read_only = read_only
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._next_compaction = 0.0
        self._logged = ""

    async def open(self) -> None:
        """Try once to make the store ready, then keep it so."""
        await self._recover()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop."""
        self._closed = True  # what the task awaits may swallow its cancellation
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._batcher.close()

    async def _run(self) -> None:
        began = lease.now()
        while not self._closed:
            pause = RETRY_SECONDS
            if self._store.ready:  # polls begin at most `poll_seconds` apart, unless they take nearly as long
                pause = max(self._poll_seconds - (lease.now() - began), min(self._poll_seconds, RETRY_SECONDS))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._store.wake.wait()
            self._store.wake.clear()
            began = lease.now()
            if self._store.ready:
                with suppress(Exception):  # the next poll tries again; each failure was counted where it happened
                    await self.drain()
            else:
                await self._recover()
                self._store.wake.clear()  # a connection lost at once is not retried at once
                if not self._store.ready:
                    await self._compact()

    async def _recover(self) -> None:
        """Make the store ready if it can be reached, is in force, and the outbox is registered."""
        try:
            self._store.join(await self._epochs.join(await self._store.connect()))
            await self.drain()
            self._store.ready = self._store.connected  # it may have been lost again meanwhile
            self._logged = ""
            log.info("redis", connected=self._store.ready)
        except Exception as error:  # the store stays unused, and this is tried again
            self._store.connected = False
            if (why := reason(error)) != self._logged:
                self._logged = why
                log.warning("redis away", reason=why)

    async def drain(self) -> None:
        """Check that the epoch is in force, register all tags of the outbox, then delete their rows.

        One drain runs at a time. Raises: StoreAway; NotInForceError; what `connect` raises; psycopg.Error.
        """
        sent = lease.now()
        await self._store.check()
        async with self._connect() as conn:
            await self._confirm(conn)
            rows = await self._read_outbox(conn)
            if any(tag == outbox.EVERYTHING for tag, _ in rows):
                if not self._read_only:
                    await outbox.compact(conn)
                    rows = await self._read_outbox(conn)
                await self._store.drop()
            if self.lease:
                self.lease.renew(sent, {tag for tag, _ in rows})
            if rows:
                await self._register(rows)
                if self.lease:
                    self.lease.registered()
                if not self._read_only:
                    await self._delete(conn, rows)

    async def confirm(self) -> None:
        """Return if every process sees what was registered so far. Raises: as `drain`."""
        async with self._connect() as conn:
            await self._confirm(conn)

    async def _confirm(self, conn: psycopg.AsyncConnection[Any]) -> None:
        try:
            await self._epochs.confirm(conn, self._store.epoch)
        except NotInForceError as error:
            if self._store.connected:
                self._store.mark_lost(error)
            raise

    async def _read_outbox(self, conn: psycopg.AsyncConnection[Any]) -> list[OutboxRow]:
        return await outbox.read(conn)

    async def _register(self, rows: list[OutboxRow]) -> None:
        await self._store.register_outbox([row for row in rows if row[0] != outbox.EVERYTHING])

    async def _delete(self, conn: psycopg.AsyncConnection[Any], rows: list[OutboxRow]) -> None:
        await outbox.delete(conn, rows, self._store.epoch)

    async def _compact(self) -> None:
        """Keep the outbox small while there is no Redis, as often as polls would run."""
        if not self._read_only and lease.now() >= self._next_compaction:
            self._next_compaction = lease.now() + self._poll_seconds
            with suppress(Exception):  # Postgres may be away, too
                async with self._connect() as conn:
                    await outbox.compact(conn)

    # For writers

    async def all_seen(self) -> None:
        """Return when no lease hides what was committed before: for a reply to a write of another process.

        Raises: what `connect` raises; psycopg.Error.
        """
        if self.lease:
            async with self._connect() as conn:
                rows = await self._read_outbox(conn)
            await self.seen(rows)

    async def seen(self, rows: Sequence[OutboxRow]) -> None:
        """Return when no lease hides these committed writes: when their rows are gone, or after L.

        It raises nothing: the writes are committed, whether or not the rows can be checked.
        """
        if self.lease is None or not rows:
            return
        can_check = len(rows) <= MAX_AWAITED and rows != outbox.VERY_MANY
        ends = lease.now() + self.lease.seconds * (1 + lease.DRIFT)
        while (left := ends - lease.now()) > 0:
            with suppress(Exception):
                async with asyncio.timeout(left):
                    if can_check and not any(
                        await asyncio.gather(*(self._batcher.ask("left", row, self._are_left) for row in rows))
                    ):
                        return
            await asyncio.sleep(min(left, CHECK_SECONDS))

    async def _are_left(self, rows: Sequence[OutboxRow]) -> list[bool]:
        async with self._connect() as conn:
            return await outbox.are_left(conn, rows)
