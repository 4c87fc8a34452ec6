"""The statements of the rollup job: see rollups.py for their order and why it matters."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg
from psycopg import AsyncConnection

from libs.db import Connection

LONGEST_MINUTES = 10  # the sums of a week of all salons

PIECE_DAYS = 7  # of one seal: a transaction with an ID keeps loads from being cached while it is open
FOLD_ROWS = 50_000  # of one fold


class RollupBusy(Exception):
    """A transaction with an older ID did not end in time, or another run held the lock."""


PUBLISH = """
    UPDATE rollups SET horizon = greatest(horizon, now() - %(lag)s::int * interval '1 minute') RETURNING horizon"""

# Each message and AI message has a conversation of its salon, so this CTE finds all salons. It reads an index entry for
# each salon.
_SALONS = """WITH RECURSIVE salons AS (
        (SELECT salon_id FROM conversations ORDER BY salon_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT c.salon_id FROM conversations AS c WHERE c.salon_id > salons.salon_id ORDER BY c.salon_id LIMIT 1
        ) FROM salons WHERE salon_id IS NOT NULL
    )"""


def _first(table: str, time: str) -> str:
    """Return the time of a salon's first row that is not summed yet."""
    return f"""(
            SELECT {time} FROM {table} AS t
            WHERE t.salon_id = salons.salon_id AND {time} >= (SELECT sealed_to FROM rollups) ORDER BY {time} LIMIT 1
        )"""


# The end of the next piece to seal, which begins at the first row that is not summed: time without rows is skipped. If
# another run has sealed more than up to this run's horizon, nothing is left.
NEXT_END = f"""
    {_SALONS}, first AS (
        SELECT min(least({_first("messages", "created_at")}, {_first("conversations", "started_at")},
            {_first("ai_messages", "created_at")})) AS time FROM salons
    )
    SELECT greatest(sealed_to, least(%(horizon)s, time + %(days)s::int * interval '1 day')) FROM first, rollups"""


def _hour(time: str) -> str:
    """Return the start of the hour of a time. date_trunc would depend on the session's time zone."""
    return f"date_bin('1 hour', {time}, 'epoch')"


def _piece(time: str) -> str:
    """Return the condition for a time in the piece to seal."""
    return f"{time} >= (SELECT sealed_to FROM rollups) AND {time} < %(end)s"


_CURRENCY = "CASE WHEN cost_micros > 0 THEN currency_code ELSE '' END"
_ADD_MESSAGES = """
        ON CONFLICT ON CONSTRAINT message_hours_pkey DO UPDATE SET
            messages = h.messages + excluded.messages, cost_micros = h.cost_micros + excluded.cost_micros"""
_ADD_CONVERSATIONS = """
        ON CONFLICT ON CONSTRAINT conversation_hours_pkey DO UPDATE SET
            conversations = h.conversations + excluded.conversations"""
_AI_COLUMNS = """(salon_id, hour, model, currency_code, messages, prompt_tokens, completion_tokens, cost_micros,
            latency_ms, max_latency_ms)"""
_AI_SUMS = """count(*) AS messages, sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                sum(cost_micros) AS cost_micros, sum(latency_ms) AS latency_ms, max(latency_ms) AS max_latency_ms"""

# The first hour of a piece may have a sum already: the piece before it ended within that hour.
SEAL = f"""
    {_SALONS}, message_sums AS (
        INSERT INTO message_hours AS h (salon_id, hour, direction, currency_code, messages, cost_micros)
        SELECT salons.salon_id, counted.* FROM salons CROSS JOIN LATERAL (
            SELECT {_hour("created_at")}, direction, {_CURRENCY}, count(*) FILTER (WHERE counted), sum(cost_micros)
            FROM messages AS t WHERE t.salon_id = salons.salon_id AND {_piece("created_at")} GROUP BY 1, 2, 3
        ) AS counted{_ADD_MESSAGES}
    ), conversation_sums AS (
        INSERT INTO conversation_hours AS h (salon_id, hour, conversations)
        SELECT salons.salon_id, counted.* FROM salons CROSS JOIN LATERAL (
            SELECT {_hour("started_at")}, count(*)
            FROM conversations AS t WHERE t.salon_id = salons.salon_id AND {_piece("started_at")} GROUP BY 1
        ) AS counted{_ADD_CONVERSATIONS}
    ), ai_message_sums AS (
        INSERT INTO ai_message_hours AS h {_AI_COLUMNS}
        SELECT salons.salon_id, counted.* FROM salons CROSS JOIN LATERAL (
            SELECT {_hour("created_at")}, model, {_CURRENCY}, {_AI_SUMS}
            FROM ai_messages AS t WHERE t.salon_id = salons.salon_id AND {_piece("created_at")} GROUP BY 1, 2, 3
        ) AS counted
        ON CONFLICT ON CONSTRAINT ai_message_hours_pkey DO UPDATE SET
            messages = h.messages + excluded.messages, prompt_tokens = h.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = h.completion_tokens + excluded.completion_tokens,
            cost_micros = h.cost_micros + excluded.cost_micros, latency_ms = h.latency_ms + excluded.latency_ms,
            max_latency_ms = greatest(h.max_latency_ms, excluded.max_latency_ms)
    ), counted_messages AS (
        DELETE FROM message_deltas WHERE {_piece("created_at")}
    ), counted_conversations AS (
        DELETE FROM conversation_deltas WHERE {_piece("started_at")}
    ), counted_ai_messages AS (
        DELETE FROM ai_message_changes WHERE {_piece("created_at")}
    )
    UPDATE rollups SET sealed_to = %(end)s"""


def _some(table: str, time: str) -> str:
    """Return the condition for up to %(rows)s deltas of sealed hours."""
    return f"""ctid = ANY (ARRAY(
            SELECT ctid FROM {table} WHERE {time} < (SELECT sealed_to FROM rollups) LIMIT %(rows)s::int
        ))"""


FOLD_MESSAGES = f"""
    WITH folded AS (
        DELETE FROM message_deltas WHERE {_some("message_deltas", "created_at")}
        RETURNING salon_id, created_at, direction, currency_code, messages, cost_micros
    ), message_sums AS (
        INSERT INTO message_hours AS h (salon_id, hour, direction, currency_code, messages, cost_micros)
        SELECT salon_id, {_hour("created_at")}, direction, currency_code, sum(messages), sum(cost_micros)
        FROM folded GROUP BY 1, 2, 3, 4{_ADD_MESSAGES}
    )
    SELECT count(*) FROM folded"""

FOLD_CONVERSATIONS = f"""
    WITH folded AS (
        DELETE FROM conversation_deltas WHERE {_some("conversation_deltas", "started_at")}
        RETURNING salon_id, started_at, conversations
    ), conversation_sums AS (
        INSERT INTO conversation_hours AS h (salon_id, hour, conversations)
        SELECT salon_id, {_hour("started_at")}, sum(conversations) FROM folded GROUP BY 1, 2{_ADD_CONVERSATIONS}
    )
    SELECT count(*) FROM folded"""

# Sums the rows of each changed hour again. The sums it has now are added as zeros: their rows may be gone.
FOLD_AI_MESSAGES = f"""
    WITH folded AS (
        DELETE FROM ai_message_changes WHERE {_some("ai_message_changes", "created_at")}
        RETURNING salon_id, created_at
    ), changed AS (
        SELECT DISTINCT salon_id, {_hour("created_at")} AS hour FROM folded
    ), counted AS (
        SELECT changed.salon_id, changed.hour, sums.* FROM changed CROSS JOIN LATERAL (
            SELECT model, {_CURRENCY} AS currency_code, {_AI_SUMS} FROM ai_messages AS t
            WHERE t.salon_id = changed.salon_id AND created_at >= changed.hour
                AND created_at < changed.hour + interval '1 hour' AND created_at < (SELECT sealed_to FROM rollups)
            GROUP BY 1, 2
        ) AS sums
        UNION ALL
        SELECT salon_id, hour, model, currency_code, 0, 0, 0, 0, 0, 0
        FROM changed JOIN ai_message_hours USING (salon_id, hour)
    ), ai_message_sums AS (
        INSERT INTO ai_message_hours AS h {_AI_COLUMNS}
        SELECT salon_id, hour, model, currency_code, sum(messages), sum(prompt_tokens), sum(completion_tokens),
            sum(cost_micros), sum(latency_ms), max(max_latency_ms)
        FROM counted GROUP BY 1, 2, 3, 4
        ON CONFLICT ON CONSTRAINT ai_message_hours_pkey DO UPDATE SET
            messages = excluded.messages, prompt_tokens = excluded.prompt_tokens,
            completion_tokens = excluded.completion_tokens, cost_micros = excluded.cost_micros,
            latency_ms = excluded.latency_ms, max_latency_ms = excluded.max_latency_ms
    )
    SELECT count(*) FROM folded"""

FOLDS = (FOLD_MESSAGES, FOLD_CONVERSATIONS, FOLD_AI_MESSAGES)


async def publish(conn: AsyncConnection[Any], lag_minutes: int) -> datetime:
    """Set the horizon to `lag_minutes` ago, unless it is later already; return it."""
    async with alone(conn):
        cursor = await conn.execute(PUBLISH.encode(), {"lag": lag_minutes})
        [(horizon,)] = await cursor.fetchall()
    return horizon  # type: ignore[no-any-return]


async def take_barrier(conn: AsyncConnection[Any]) -> int:
    """Return a new transaction ID. Call it after `publish` has committed, outside of a transaction."""
    [(barrier,)] = await (await conn.execute(b"SELECT pg_current_xact_id()::text::bigint")).fetchall()
    return int(barrier)


async def is_passed(conn: AsyncConnection[Any], barrier: int) -> bool:
    """Return whether all transactions with an ID up to `barrier` have ended."""
    query = b"SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > %s"
    [(passed,)] = await (await conn.execute(query, [barrier])).fetchall()
    return bool(passed)


async def seal(conn: AsyncConnection[Any], horizon: datetime) -> datetime:
    """Sum the next PIECE_DAYS that have rows, up to `horizon`; return how far rows are summed now.

    The barrier taken after this horizon was published must have passed.
    Source: indexes conversations_pkey (one entry for each salon), idx_messages_salon_created,
    idx_conversations_salon_started, idx_ai_messages_salon_created.
    """
    async with alone(conn):
        params: dict[str, Any] = {"horizon": horizon, "days": PIECE_DAYS}
        [(end,)] = await (await conn.execute(NEXT_END.encode(), params)).fetchall()
        await conn.execute(SEAL.encode(), {"end": end})
    return end  # type: ignore[no-any-return]


async def fold_deltas(conn: AsyncConnection[Any], fold: str) -> int:
    """Run one of FOLDS: add up to FOLD_ROWS deltas of sealed hours to the sums; return how many."""
    async with alone(conn):
        [(rows,)] = await (await conn.execute(fold.encode(), {"rows": FOLD_ROWS})).fetchall()
    return int(rows)


async def sealed_seconds(conn: AsyncConnection[Any]) -> float:
    """Return the Unix time up to which rows are summed, in s; 0 if none are."""
    query = b"SELECT extract(epoch FROM greatest(sealed_to, 'epoch'))::float8 FROM rollups"
    [(seconds,)] = await (await conn.execute(query)).fetchall()
    return float(seconds)


@asynccontextmanager
async def alone(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """Run a transaction that no other run's overlaps. Readers and writers don't wait for it.

    LOCK takes no snapshot, so that of the next statement sees all that the run before it did. A statement may take
    LONGEST_MINUTES. Raises: RollupBusy if another run holds the lock for 10 s.
    """
    if isinstance(conn, Connection):  # of the services' pool
        conn.allowed_seconds = 60.0 * LONGEST_MINUTES
    try:
        async with conn.transaction():
            await conn.execute(b"SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            await conn.execute(b"SET LOCAL lock_timeout = '10s'")
            await conn.execute(f"SET LOCAL statement_timeout = '{LONGEST_MINUTES}min'".encode())
            try:
                await conn.execute(b"LOCK TABLE rollups IN SHARE UPDATE EXCLUSIVE MODE")
            except psycopg.errors.LockNotAvailable:
                raise RollupBusy("another run holds the lock") from None
            yield
    finally:
        if isinstance(conn, Connection):
            conn.allowed_seconds = 0.0
