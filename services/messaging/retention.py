"""Deletes expired data: what the RETENTION_* settings name, and statuses, reactions... whose message never came.

Rows are deleted in batches of up to ROWS, one transaction each, by one process at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import psycopg
import structlog
from psycopg import AsyncConnection

from libs.cache import Cache, CacheUnavailable, CommitUnknown
from libs.db import Database, DatabaseUnavailable, PoolExhausted
from services.cache_tags import CacheTags
from services.messaging.settings import MessagingSettings

EVERY_SECONDS = 3600
PAUSE_SECONDS = 0.05  # between batches, to leave room for other work
ROWS = 500
EARLY_DAYS = 30  # WhatsApp retries a webhook for 7

# Two processes that delete the same rows could deadlock. With this condition, the second one finds no row.
_ALONE = "(SELECT pg_try_advisory_xact_lock(hashtext('parlor'), hashtext('retention')))"
_OLD = "< now() - %(days)s::int * interval '1 day'"
Delete: TypeAlias = Callable[[AsyncConnection[Any], int], Awaitable[int]]

log = structlog.get_logger()


class Retention:
    """The background job that deletes expired data."""

    def __init__(self, cache: Cache, database: Database, settings: MessagingSettings) -> None:
        """Read the retention of each kind, in days; None keeps it forever."""
        self._cache = cache
        self._database = database
        self._tags = CacheTags(cache)
        self._ai_days = settings.retention_ai_messages
        self._deletes: list[tuple[Delete, int | None]] = [
            (delete_raw_items, settings.retention_raw_items),
            (delete_amendment_items, settings.retention_raw_items),
            (delete_failures, settings.retention_failures),
            (delete_early_statuses, EARLY_DAYS),
            (delete_early_amendments, EARLY_DAYS),
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
                salons = await salons_with_old_ai_texts(conn, self._ai_days)
            for salon_id in salons:
                await _all(partial(self._empty_ai_texts, salon_id, self._ai_days))

    async def _batch(self, delete: Delete, days: int) -> int:
        async with self._database.connection() as conn:
            return await delete(conn, days)

    async def _empty_ai_texts(self, salon_id: str, days: int) -> int:
        """Empty expired texts of one salon and invalidate the lists that show them; return how many."""
        async with self._cache.transaction() as transaction:
            emptied = await empty_ai_texts(transaction.conn, salon_id, days)
            transaction.invalidate(*(self._tags.ai_messages(salon_id, found) for found in set(emptied)))
        return len(emptied)


async def _all(batch: Callable[[], Awaitable[int]]) -> None:
    """Repeat a batch until it is not full, pausing in between."""
    rows = ROWS
    while rows == ROWS:
        rows = await batch()
        await asyncio.sleep(PAUSE_SECONDS)


def _salons(table: str, which: str = "true") -> str:
    """Return a CTE of the salons that have such rows. Reads one index entry per salon."""
    return f"""WITH RECURSIVE salons AS (
            (SELECT salon_id FROM {table} WHERE {which} ORDER BY salon_id LIMIT 1)
            UNION ALL
            SELECT (
                SELECT t.salon_id FROM {table} AS t WHERE {which} AND t.salon_id > salons.salon_id
                ORDER BY t.salon_id LIMIT 1
            ) FROM salons WHERE salon_id IS NOT NULL
        )"""


async def delete_raw_items(conn: AsyncConnection[Any], days: int) -> int:
    """Delete raw items of messages older than `days`; return how many.

    Source: index raw_messages_received.
    """
    query = f"""
        DELETE FROM raw_messages WHERE (salon_id, message_id) IN (
            SELECT salon_id, message_id FROM raw_messages WHERE {_ALONE} AND received_at {_OLD}
            ORDER BY received_at LIMIT {ROWS}
        )"""
    return (await conn.execute(query.encode(), {"days": days})).rowcount


async def delete_amendment_items(conn: AsyncConnection[Any], days: int) -> int:
    """Delete raw items of reactions, edits and revokes older than `days`; return how many.

    Source: index message_amendments_received.
    """
    query = f"""
        UPDATE message_amendments SET item = NULL WHERE (salon_id, whatsapp_id) IN (
            SELECT salon_id, whatsapp_id FROM message_amendments
            WHERE {_ALONE} AND item IS NOT NULL AND received_at {_OLD}
            ORDER BY received_at LIMIT {ROWS}
        )"""
    return (await conn.execute(query.encode(), {"days": days})).rowcount


async def delete_failures(conn: AsyncConnection[Any], days: int) -> int:
    """Delete webhook items that could not be recorded, older than `days`; return how many.

    Source: index idx_webhook_failures_salon_created, one lookup per salon. The planner would also choose an index on
    created_at alone for ListWebhookFailures, where few salons have most of the rows.
    """
    query = f"""
        {_salons("webhook_failures")}
        DELETE FROM webhook_failures WHERE (salon_id, webhook_failure_id) IN (
            SELECT old.salon_id, old.webhook_failure_id FROM salons CROSS JOIN LATERAL (
                SELECT f.salon_id, f.webhook_failure_id FROM webhook_failures AS f
                WHERE f.salon_id = salons.salon_id AND f.created_at {_OLD} LIMIT {ROWS}
            ) AS old WHERE {_ALONE} LIMIT {ROWS}
        )"""
    return (await conn.execute(query.encode(), {"days": days})).rowcount


async def delete_early_statuses(conn: AsyncConnection[Any], days: int) -> int:
    """Delete statuses whose message has not come within `days`, unmark the others; return how many of both.

    Source: indexes message_status_events_early, whatsapp_id.
    """
    query = _delete_early("message_status_events", "whatsapp_id", "salon_id, whatsapp_id, status, occurred_at")
    return (await conn.execute(query.encode(), {"days": days})).rowcount


async def delete_early_amendments(conn: AsyncConnection[Any], days: int) -> int:
    """Delete reactions, edits and revokes whose message has not come within `days`, as `delete_early_statuses` does.

    Source: indexes message_amendments_early, message_amendments_pkey, whatsapp_id.
    """
    query = _delete_early("message_amendments", "target_whatsapp_id", "salon_id, whatsapp_id")
    return (await conn.execute(query.encode(), {"days": days})).rowcount


def _delete_early(table: str, whatsapp_id: str, key: str) -> str:
    """Return the statement for rows that came before their message; `whatsapp_id`: the column that names it."""
    return f"""
        WITH due AS (
            SELECT {key}, EXISTS (
                SELECT FROM messages AS m WHERE m.salon_id = e.salon_id AND m.whatsapp_id = e.{whatsapp_id}
            ) AS has_message
            FROM {table} AS e WHERE {_ALONE} AND early_since {_OLD}
            ORDER BY early_since LIMIT {ROWS}
        ), deleted AS (
            DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM due WHERE NOT has_message)
        ), kept AS (
            UPDATE {table} SET early_since = NULL WHERE ({key}) IN (SELECT {key} FROM due WHERE has_message)
        )
        SELECT FROM due"""


async def salons_with_old_ai_texts(conn: AsyncConnection[Any], days: int) -> list[str]:
    """Return the salons that have texts of AI messages older than `days`.

    Source: index ai_messages_salon_text, one lookup per salon.
    """
    query = f"""
        {_salons("ai_messages", "content <> ''")}
        SELECT salon_id FROM salons WHERE EXISTS (
            SELECT FROM ai_messages AS a
            WHERE a.salon_id = salons.salon_id AND a.content <> '' AND a.created_at {_OLD}
        )"""
    return [salon_id for (salon_id,) in await (await conn.execute(query.encode(), {"days": days})).fetchall()]


async def empty_ai_texts(conn: AsyncConnection[Any], salon_id: str, days: int) -> list[str]:
    """Empty the texts of a salon's AI messages that are older than `days`; return the conversation of each.

    Source: index ai_messages_salon_text.
    """
    query = f"""
        UPDATE ai_messages SET content = '' WHERE salon_id = %(salon_id)s AND ai_message_id IN (
            SELECT ai_message_id FROM ai_messages
            WHERE {_ALONE} AND salon_id = %(salon_id)s AND content <> '' AND created_at {_OLD}
            ORDER BY created_at LIMIT {ROWS} FOR UPDATE SKIP LOCKED
        )
        RETURNING conversation_id::text"""
    params = {"salon_id": salon_id, "days": days}
    return [found for (found,) in await (await conn.execute(query.encode(), params)).fetchall()]
