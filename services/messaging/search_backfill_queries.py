"""Makes the words of messages that were recorded before migration 0018, in the background, until all have them."""

import asyncio
from typing import Any

import psycopg
import structlog
from psycopg import AsyncConnection

from libs.cache import Cache, CacheUnavailable, CommitUnknown
from libs.db import Database, DatabaseUnavailable, PoolExhausted
from services.cache_tags import CacheTags

ROWS = 500  # per transaction
PAUSE_SECONDS = 0.05  # between transactions, to leave room for other work
RETRY_SECONDS = 60

log = structlog.get_logger()


async def backfill(cache: Cache, database: Database) -> None:
    """Make the words of all messages, then return. Every process runs this; one at a time finds the place.

    A migration can't do this: it would hold its locks, or rewrite the table, for minutes.
    """
    tags = CacheTags(cache)
    while True:
        try:
            async with database.connection() as conn:
                salon_id = await next_salon(conn)
                if not salon_id:
                    await conn.execute("DELETE FROM search_backfill")
                    return
            async with cache.transaction(tags.messages(salon_id)) as write:
                await backfill_salon(write.conn, salon_id)
            await asyncio.sleep(PAUSE_SECONDS)
        except (DatabaseUnavailable, PoolExhausted, CacheUnavailable, CommitUnknown, psycopg.Error) as error:
            log.warning("search backfill", error=repr(error))
            await asyncio.sleep(RETRY_SECONDS)


async def next_salon(conn: AsyncConnection[Any]) -> str | None:
    """Return the salon of the next message to look at, None if there is none or the backfill has ended.

    Source: indexes search_backfill_pkey, messages_pkey.
    """
    query = """
        SELECT (
            SELECT m.salon_id FROM messages AS m
            WHERE (m.salon_id, m.message_id) > (b.salon_id, b.message_id) ORDER BY m.salon_id, m.message_id LIMIT 1
        ) FROM search_backfill AS b"""
    row = await (await conn.execute(query.encode())).fetchone()
    return row and row[0]


async def backfill_salon(conn: AsyncConnection[Any], salon_id: str) -> None:
    """Make the words of the next ROWS messages of a salon, and note the place; nothing if another process is at it.

    The messages are locked, so that no text is erased meanwhile whose words would stay. They are not in the feed of
    changes (migration 0023).
    Source: indexes search_backfill_pkey, messages_pkey.
    """
    query = f"""
        WITH place AS MATERIALIZED (
            SELECT salon_id, message_id FROM search_backfill FOR UPDATE SKIP LOCKED
        ), batch AS MATERIALIZED (
            SELECT m.salon_id, m.message_id, m.search, message_vector(m.language, m.content) AS vector
            FROM place, messages AS m
            WHERE m.salon_id = %(salon_id)s AND (m.salon_id, m.message_id) > (place.salon_id, place.message_id)
            ORDER BY m.message_id LIMIT {ROWS} FOR NO KEY UPDATE OF m
        ), updated AS (
            UPDATE messages AS m SET language = m.language FROM batch
            WHERE m.salon_id = batch.salon_id AND m.message_id = batch.message_id AND batch.search <> batch.vector
        ), words AS (
            INSERT INTO message_words (salon_id, word)
            SELECT DISTINCT salon_id, lexeme FROM batch CROSS JOIN LATERAL unnest(vector) AS words
            WHERE is_searchable(lexeme) ORDER BY 1, 2
            ON CONFLICT DO NOTHING
        )
        UPDATE search_backfill SET salon_id = last.salon_id, message_id = last.message_id
        FROM (SELECT salon_id, message_id FROM batch ORDER BY message_id DESC LIMIT 1) AS last"""
    await conn.execute(b"SELECT set_config('parlor.makes_words', 'on', true)")
    await conn.execute(query.encode(), {"salon_id": salon_id})
