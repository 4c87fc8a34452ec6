"""Ends holds that were not confirmed in time: they become EXPIRED, and reads of them are invalidated."""

import asyncio
from typing import Any

import psycopg
import structlog
from psycopg import AsyncConnection

from libs.cache import Cache, CacheUnavailable, CommitUnknown
from libs.db import Database, DatabaseUnavailable, PoolExhausted
from services.booking.booking_write_queries import expire_holds
from services.cache_tags import CacheTags

EVERY_SECONDS = 5.0  # a hold shows as EXPIRED at most 30 s after its end
SALONS = 1000  # in one step

log = structlog.get_logger()


class HoldExpiry:
    """The background job that ends expired holds. Several processes share the work: each skips what another locks."""

    def __init__(self, cache: Cache, database: Database) -> None:
        """Prepare; `run` runs it."""
        self._cache = cache
        self._database = database
        self._tags = CacheTags(cache)

    async def run(self) -> None:
        """End expired holds every few seconds, until canceled."""
        while True:
            try:
                await self.expire()
            except (DatabaseUnavailable, PoolExhausted, CacheUnavailable, CommitUnknown, psycopg.Error) as error:
                log.warning("hold expiry", error=repr(error))
            await asyncio.sleep(EVERY_SECONDS)

    async def expire(self) -> None:
        """End expired holds of up to SALONS salons, in a transaction for each.

        Raises: what `Database.connection` and `Cache.transaction` raise; psycopg.Error.
        """
        async with self._database.connection() as conn:
            salons = await salons_with_expired_holds(conn)
        for salon_id in salons:
            async with self._cache.transaction() as transaction:
                holds = await expire_holds(transaction.conn, salon_id)
                if holds:  # another process may have been first
                    transaction.invalidate(*self._tags.of_bookings(salon_id, *holds))


async def salons_with_expired_holds(conn: AsyncConnection[Any]) -> list[str]:
    """Return up to SALONS salons that have expired holds.

    Source: index idx_bookings_holds.
    """
    query = f"""
        SELECT DISTINCT salon_id FROM (
            SELECT salon_id FROM bookings
            WHERE status = 'PENDING' AND hold_expires_at IS NOT NULL AND hold_expires_at <= now()
            ORDER BY hold_expires_at LIMIT {SALONS}
        ) AS expired"""  # noqa: S608 - a constant
    return [salon_id for (salon_id,) in await (await conn.execute(query.encode())).fetchall()]
