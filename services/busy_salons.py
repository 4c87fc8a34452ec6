"""The salons with the most new bookings in the last hours, whose reads are loaded before a caller needs them."""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from psycopg import AsyncConnection, Error

from libs.cache import Cache
from libs.db import Database, DatabaseUnavailable, PoolExhausted
from libs.messages import fetch_rows

SALONS = 20


class BusySalon(NamedTuple):
    """A salon, today in its time zone and this month in UTC: each a start_time and an end_time for a request."""

    salon_id: str
    phone_number_id: str
    today: dict[str, Any]
    this_month: dict[str, Any]


async def busiest_salons(conn: AsyncConnection[Any]) -> list[BusySalon]:
    """Return up to SALONS salons, those with the most bookings created in the last 6 hours first.

    Source: index idx_bookings_created.
    """
    query = """
        SELECT salon_id, phone_number_id, date_trunc('day', now(), time_zone),
            (date_trunc('day', now() AT TIME ZONE time_zone) + interval '1 day') AT TIME ZONE time_zone,
            date_trunc('month', now(), 'UTC'), date_trunc('month', now(), 'UTC') + interval '1 month'
        FROM (
            SELECT salon_id, count(*) AS made FROM bookings WHERE created_at > now() - interval '6 hours'
            GROUP BY salon_id ORDER BY made DESC LIMIT %s
        ) AS busiest JOIN salons USING (salon_id) ORDER BY made DESC"""
    _, rows = await fetch_rows(conn, query, [SALONS])
    return [
        BusySalon(salon, phone, {"start_time": day, "end_time": end}, {"start_time": month, "end_time": month_end})
        for salon, phone, day, end, month, month_end in rows
    ]


async def warm(
    cache: Cache, database: Database, reads: Callable[[BusySalon], Iterable[Callable[[], Awaitable[Any]]]]
) -> None:
    """Make the `reads` of each busy salon, one at a time, so that their replies are cached."""
    if cache.settings.warm:
        with suppress(DatabaseUnavailable, PoolExhausted, Error):
            async with database.connection() as conn:
                salons = await busiest_salons(conn)
            await cache.warmer.expect(read for salon in salons for read in reads(salon))
