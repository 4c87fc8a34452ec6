"""Keeps watch over Redis, and over the writes that could not reach it.

A write without Redis leaves its groups in `cache_pending`, in its own transaction. Every process registers what it
finds there, and only then deletes the rows. A process that lost Redis serves no hit until it has registered all that
was there after Redis came back.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import psycopg
import structlog

from libs.cache.store import Store

RETRY_SECONDS = 0.1

log = structlog.get_logger()


class Watch:
    """The background task of a cache; the only one to declare a store ready."""

    def __init__(
        self,
        store: Store,
        connect: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]],
        poll_seconds: float,
        *,
        deletes: bool,
    ) -> None:
        """Prepare the watch; nothing runs before `open`."""
        self._store = store
        self._connect = connect
        self._poll_seconds = poll_seconds
        self._deletes = deletes
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Try once to make the store ready, then watch it."""
        await self._recover()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop watching."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Look at once: the store was lost, or rows were left."""
        self._store.wake.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self._store.wake.wait(), self._poll_seconds if self._store.ready else RETRY_SECONDS
                )
            self._store.wake.clear()
            if self._store.ready:
                with suppress(Exception):  # the next poll tries again; what failed was counted where it failed
                    await self.drain()
            else:
                await self._recover()

    async def _recover(self) -> None:
        """Make the store ready if it is there, is known to hold nothing old, and no write is left pending."""
        try:
            await self._store.recover()
            await self.drain()
            self._store.ready = True
            log.info("redis", connected=True)
        except Exception as error:  # whatever it was: the store stays unused, and this is tried again
            self._store.connected = False
            log.debug("redis away", error=repr(error))

    async def drain(self) -> None:
        """Register all pending groups, then delete their rows.

        Raises: StoreAway; what `connect` raises; psycopg.Error.
        """
        async with self._connect() as conn:
            cursor = await conn.execute("SELECT group_key, xact_id FROM cache_pending")
            if not (rows := await cursor.fetchall()):
                return
            await asyncio.gather(*(self._store.register(meta, xact_id) for meta, xact_id in rows))
            if self._deletes:
                await conn.execute(
                    "DELETE FROM cache_pending WHERE (group_key, xact_id) IN"
                    " (SELECT * FROM unnest(%s::text[], %s::bigint[]))",
                    [list(column) for column in zip(*rows, strict=True)],
                )
