"""Keeps watch over Redis, and over the writes that could not reach it.

A write without Redis leaves its tags in `cache_outbox`, in its own transaction. Every process registers what it
finds there, and only then deletes the rows. A process that lost Redis serves no hit until it has registered all that
was there after Redis came back.

With the setting `wait` it also holds the process's lease, and lets a writer wait until nobody's lease hides the write.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import psycopg
import structlog

from libs.cache import lease, outbox
from libs.cache.batcher import Batcher
from libs.cache.epoch import EpochRow, NotInForceError
from libs.cache.lease import Lease
from libs.cache.outbox import Pending
from libs.cache.probe import reason
from libs.cache.store import Store

RETRY_SECONDS = 0.1
LOOK_SECONDS = 0.05  # how often writers who wait look whether their rows are gone
LOOKS_A_LEASE = 3
MOST_AWAITED = 256  # rows that a writer looks for; of more it waits for the leases

log = structlog.get_logger()


class Recovery:
    """The background task of a cache; the only one to declare a store ready."""

    def __init__(
        self,
        store: Store,
        connect: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]],
        poll_seconds: float,
        *,
        deletes: bool,
        leases: bool = False,
    ) -> None:
        """Prepare the watch; nothing runs before `open`. If it `leases`, `poll_seconds` is a lease's length.

        One that may not write `deletes` no rows, and puts no cache in force.
        """
        self._store = store
        self._connect = connect
        self.lease = Lease(poll_seconds) if leases else None
        self._in_force = EpochRow(connect, poll_seconds if leases else None, read_only=not deletes)
        self._poll_seconds = poll_seconds / LOOKS_A_LEASE if leases else poll_seconds
        self._batcher = Batcher()
        self._deletes = deletes
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._compacts = 0.0
        self._told = ""

    async def open(self) -> None:
        """Try once to make the store ready, then watch it."""
        await self._recover()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop watching."""
        self._closed = True  # what the task awaits may swallow its cancellation
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._batcher.close()

    async def _run(self) -> None:
        while not self._closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds if self._store.ready else RETRY_SECONDS):
                    await self._store.wake.wait()
            self._store.wake.clear()
            if self._store.ready:
                with suppress(Exception):  # the next poll tries again; what failed was counted where it failed
                    await self.drain()
            else:
                await self._recover()
                self._store.wake.clear()  # a connection lost at once is not tried again at once
                if not self._store.ready:
                    await self._compact()

    async def _recover(self) -> None:
        """Make the store ready if it is there and in force, and no write is left pending."""
        try:
            self._store.join(await self._in_force.join(await self._store.connect()))
            await self.drain()
            self._store.ready = self._store.connected  # it may have been lost again meanwhile
            self._told = ""
            log.info("redis", connected=self._store.ready)
        except Exception as error:  # whatever it was: the store stays unused, and this is tried again
            self._store.connected = False
            if (why := reason(error)) != self._told:
                self._told = why
                log.warning("redis away", reason=why)

    async def drain(self) -> None:
        """Make sure that the cache is in force, register all pending tags, then delete their rows.

        One drain at a time. Raises: StoreAway; NotInForceError; what `connect` raises; psycopg.Error.
        """
        sent = lease.now()
        await self._store.check()
        async with self._connect() as conn:
            await self._confirm(conn)
            pending = await self._pending(conn)
            if any(tag == outbox.EVERYTHING for tag, _ in pending):
                if self._deletes:
                    await outbox.compact(conn)
                    pending = await self._pending(conn)
                await self._store.drop()
            if self.lease:
                self.lease.renew(sent, {meta for meta, _ in pending})
            if pending:
                await self._register(pending)
                if self.lease:
                    self.lease.registered()
                if self._deletes:
                    await self._delete(conn, pending)

    async def confirm(self) -> None:
        """Return if what was registered so far is seen by every process. Raises: as `drain`."""
        async with self._connect() as conn:
            await self._confirm(conn)

    async def _confirm(self, conn: psycopg.AsyncConnection[Any]) -> None:
        try:
            await self._in_force.confirm(conn, self._store.epoch)
        except NotInForceError as error:
            if self._store.connected:
                self._store.mark_lost(error)
            raise

    async def _pending(self, conn: psycopg.AsyncConnection[Any]) -> list[Pending]:
        return await outbox.read(conn)

    async def _register(self, pending: list[Pending]) -> None:
        await self._store.register_pending([each for each in pending if each[0] != outbox.EVERYTHING])

    async def _delete(self, conn: psycopg.AsyncConnection[Any], pending: list[Pending]) -> None:
        await outbox.delete(conn, pending, self._store.epoch)

    async def _compact(self) -> None:
        """Keep what writers leave small while there is no Redis, as often as this would poll."""
        if self._deletes and lease.now() >= self._compacts:
            self._compacts = lease.now() + self._poll_seconds
            with suppress(Exception):  # Postgres may be away, too
                async with self._connect() as conn:
                    await outbox.compact(conn)

    # Writers

    async def all_seen(self) -> None:
        """Return when no lease hides what was committed before: for a reply to a write of another process.

        Raises: what `connect` raises; psycopg.Error.
        """
        if self.lease:
            async with self._connect() as conn:
                pending = await self._pending(conn)
            await self.seen(pending)

    async def seen(self, pending: Sequence[Pending]) -> None:
        """Return when no lease hides these writes, which were committed before: their rows are gone, or after L.

        It raises nothing: whatever happens to a look, the writes are committed.
        """
        if self.lease is None or not pending:
            return
        asks = len(pending) <= MOST_AWAITED and pending != outbox.VERY_MANY
        ends = lease.now() + self.lease.seconds * (1 + lease.DRIFT)
        while (left := ends - lease.now()) > 0:
            with suppress(Exception):
                async with asyncio.timeout(left):
                    if asks and not any(
                        await asyncio.gather(*(self._batcher.ask("left", row, self._left) for row in pending))
                    ):
                        return
            await asyncio.sleep(min(left, LOOK_SECONDS))

    async def _left(self, rows: Sequence[Pending]) -> list[bool]:
        """Say of each row whether it is left."""
        async with self._connect() as conn:
            return await outbox.left(conn, rows)
