"""Deletes expired data: what the RETENTION_* settings name, and statuses whose message never came.

Rows are deleted in small batches, one transaction each, by one process at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import psycopg
import structlog

from libs.cache import Cache, CacheUnavailable, CommitUnknown
from libs.db import Database, DatabaseUnavailable, PoolExhausted
from services.cache_tags import CacheTags
from services.messaging import retention_queries as queries
from services.messaging.settings import MessagingSettings

EVERY_SECONDS = 3600
PAUSE_SECONDS = 0.05  # between batches, to leave room for other work

Delete: TypeAlias = Callable[[psycopg.AsyncConnection[Any], int], Awaitable[int]]

log = structlog.get_logger()


class Retention:
    """The background job that deletes expired data."""

    def __init__(self, cache: Cache, database: Database, settings: MessagingSettings) -> None:
        """Read the retention of each kind, in days; None keeps it forever."""
        self._cache = cache
        self._database = database
        self._groups = CacheTags(cache)
        self._ai_days = settings.retention_ai_messages
        self._deletes: list[tuple[Delete, int | None]] = [
            (queries.delete_raw_items, settings.retention_raw_items),
            (queries.delete_failures, settings.retention_failures),
            (queries.delete_early_statuses, queries.EARLY_DAYS),
        ]

    async def run(self) -> None:
        """Delete expired data now and every hour, forever."""
        while True:
            try:
                await self.delete()
            except (DatabaseUnavailable, PoolExhausted, CacheUnavailable, CommitUnknown, psycopg.Error) as error:
                log.warning("retention", error=repr(error))
            await asyncio.sleep(EVERY_SECONDS)

    async def delete(self) -> None:
        """Delete everything that has expired.

        Raises: what `Database.connection` and `Cache.transaction` raise; psycopg.Error.
        """
        for delete, days in self._deletes:
            if days:
                await _all(partial(self._batch, delete, days))
        if self._ai_days:
            async with self._database.connection() as conn:
                salons = await queries.salons_with_old_ai_texts(conn, self._ai_days)
            for salon_id in salons:
                await _all(partial(self._empty_ai_texts, salon_id, self._ai_days))

    async def _batch(self, delete: Delete, days: int) -> int:
        async with self._database.connection() as conn:
            return await delete(conn, days)

    async def _empty_ai_texts(self, salon_id: str, days: int) -> int:
        """Empty expired texts of one salon and invalidate the lists that show them; return how many."""
        async with self._cache.transaction() as transaction:
            emptied = await queries.empty_ai_texts(transaction.conn, salon_id, days)
            transaction.invalidate(*(self._groups.ai_messages(salon_id, found) for found in set(emptied)))
        return len(emptied)


async def _all(batch: Callable[[], Awaitable[int]]) -> None:
    """Repeat a batch until it is not full, pausing in between."""
    rows = queries.ROWS
    while rows == queries.ROWS:
        rows = await batch()
        await asyncio.sleep(PAUSE_SECONDS)
