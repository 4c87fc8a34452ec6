"""The statements that delete expired data, one function each. Each changes at most ROWS rows.

Two processes that delete the same rows could deadlock. _ALONE makes the second one find nothing to do.
"""

from typing import Any

from psycopg import AsyncConnection

ROWS = 500
EARLY_DAYS = 30  # WhatsApp retries a webhook for 7

_ALONE = "(SELECT pg_try_advisory_xact_lock(hashtext('parlor'), hashtext('retention')))"
_OLD = "< now() - %(days)s::int * interval '1 day'"


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
    query = f"""
        WITH due AS (
            SELECT salon_id, whatsapp_id, status, occurred_at, EXISTS (
                SELECT FROM messages AS m WHERE m.salon_id = e.salon_id AND m.whatsapp_id = e.whatsapp_id
            ) AS has_message
            FROM message_status_events AS e WHERE {_ALONE} AND early_since {_OLD}
            ORDER BY early_since LIMIT {ROWS}
        ), deleted AS (
            DELETE FROM message_status_events AS e USING due
            WHERE (e.salon_id, e.whatsapp_id, e.status, e.occurred_at)
                = (due.salon_id, due.whatsapp_id, due.status, due.occurred_at) AND NOT has_message
        ), kept AS (
            UPDATE message_status_events AS e SET early_since = NULL FROM due
            WHERE (e.salon_id, e.whatsapp_id, e.status, e.occurred_at)
                = (due.salon_id, due.whatsapp_id, due.status, due.occurred_at) AND has_message
        )
        SELECT FROM due"""
    return (await conn.execute(query.encode(), {"days": days})).rowcount


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
