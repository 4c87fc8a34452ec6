"""Statistics from hourly sums, compared with counts of the rows themselves in the same snapshot."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import psycopg

from libs.db import Connection, QueryStats
from libs.server import RpcError
from parlor.stats.v1.stats_pb2 import AiAnalytics, MessageDirectionStats, SalonStats
from services.messaging.rollups import Connect
from services.stats.ai_queries import ai_analytics
from services.stats.queries import Buckets, Period, message_direction_stats, salon_stats

# Days begin at half past and at a quarter to an hour, in UTC, for two of them.
ZONES = {"berlin": "Europe/Berlin", "kolkata": "Asia/Kolkata", "kathmandu": "Asia/Kathmandu"}


async def connection(database_url: str) -> Connection:
    """Return a new connection of the owner, in autocommit mode."""
    conn = await Connection.connect(database_url, autocommit=True)
    conn.queries = QueryStats(threshold=60)
    return conn


def connecting(database_url: str) -> Connect:
    """Return what lends the job a new connection each time."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with await connection(database_url) as conn:
            yield conn

    return connect


def create_salons(database_url: str) -> None:
    """Create a salon with 3 conversations in each of ZONES."""
    with psycopg.connect(database_url) as conn:
        for salon_id, zone in ZONES.items():
            conn.execute(
                "INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES (%s, %s, 'Hair', %s)",
                [salon_id, f"10{salon_id}", zone],
            )
            conn.execute(
                "INSERT INTO conversations (salon_id, phone_number, started_at)"
                " SELECT %s, '+49151' || n, now() - n * interval '7 hours' FROM generate_series(1, 3) AS n",
                [salon_id],
            )


INSERT_MESSAGE = """
    INSERT INTO messages (salon_id, conversation_id, direction, type, status, cost_micros, currency_code, created_at,
        counted)
    SELECT salon_id, conversation_id, %(direction)s, 'TEXT', 'SENT', %(cost)s, %(currency)s, %(at)s, %(counted)s
    FROM conversations WHERE salon_id = %(salon_id)s ORDER BY phone_number LIMIT 1"""
INSERT_AI_MESSAGE = """
    INSERT INTO ai_messages (salon_id, conversation_id, model, role, prompt_tokens, completion_tokens, cost_micros,
        currency_code, latency_ms, booking_code, created_at)
    SELECT salon_id, conversation_id, %(model)s, 'ASSISTANT', 10, 20, %(cost)s, %(currency)s, %(latency)s, %(code)s,
        %(at)s
    FROM conversations WHERE salon_id = %(salon_id)s ORDER BY phone_number LIMIT 1"""


async def insert_message(conn: psycopg.AsyncConnection[Any], at: datetime, **values: Any) -> None:
    """Insert an outbound message with a cost."""
    params = {"salon_id": "berlin", "direction": "OUTBOUND", "cost": 5, "currency": "EUR", "counted": True}
    await conn.execute(INSERT_MESSAGE.encode(), {**params, "at": at, **values})


async def insert_ai_message(conn: psycopg.AsyncConnection[Any], at: datetime, **values: Any) -> None:
    """Insert an AI message with a cost."""
    params = {"salon_id": "berlin", "model": "m", "cost": 5, "currency": "EUR", "latency": 100, "code": None, "at": at}
    await conn.execute(INSERT_AI_MESSAGE.encode(), {**params, **values})


async def differences(
    conn: Connection, periods: Sequence[Period], messages: str = "messages"
) -> list[tuple[Period, Any, Any]]:
    """Return the periods whose statistics differ from the counts of rows in one snapshot, with both.

    `messages` is the table with the messages to count.
    """
    await conn.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    # A snapshot does not bring back a partition that is detached after it was taken. LOCK takes none.
    await conn.execute(b"LOCK TABLE messages IN ACCESS SHARE MODE")
    try:
        answers = await _statistics(conn, periods)
        counts = [await _rows_of(conn, period, messages) for period in periods]
    finally:
        await conn.rollback()
    return [found for found in zip(periods, answers, counts, strict=True) if found[1] != found[2]]


async def is_exact(database_url: str) -> bool:
    """Return whether the statistics of the last days of each salon, with edges at odd times, equal the rows."""
    now = datetime.now(UTC)
    ends = (now + timedelta(hours=1), now - timedelta(minutes=100))
    periods = [Period(salon_id, now - timedelta(days=5, seconds=7), end) for salon_id in ZONES for end in ends]
    async with await connection(database_url) as conn:
        return await differences(conn, periods) == []


async def _statistics(conn: Connection, periods: Sequence[Period]) -> list[dict[str, Any]]:
    def parsed(kind: Any, loaded: Any) -> list[Any]:
        assert not any(isinstance(found.value, RpcError) for found in loaded)
        return [kind.FromString(found.value) for found in loaded]

    totals = parsed(SalonStats, await salon_stats(conn, periods))
    directions = parsed(MessageDirectionStats, await message_direction_stats(conn, periods))
    usages = parsed(AiAnalytics, await ai_analytics(conn, [Buckets(*period, "day") for period in periods]))
    return [
        {
            "messages": total.messages,
            "conversations": total.conversations,
            "costs": _costs(total.costs),
            "inbound": (direction.inbound_messages, _costs(direction.inbound_costs)),
            "outbound": (direction.outbound_messages, _costs(direction.outbound_costs)),
            "models": {
                usage.model: (
                    *(usage.messages, usage.prompt_tokens, usage.completion_tokens, _costs(usage.costs)),
                    *(usage.average_latency_ms, usage.max_latency_ms, usage.bookings),
                )
                for usage in ai.models
            },
            "days": [
                (bucket.messages, bucket.prompt_tokens, bucket.completion_tokens, _costs(bucket.costs))
                for bucket in ai.buckets
            ],
        }
        for total, direction, ai in zip(totals, directions, usages, strict=True)
    ]


def _costs(costs: Any) -> dict[str, int]:
    return {cost.currency_code: cost.cost_micros for cost in costs}


async def _rows_of(conn: psycopg.AsyncConnection[Any], period: Period, table: str) -> dict[str, Any]:
    messages = await _query(conn, _MESSAGES.replace("FROM messages", f"FROM {table}"), period)
    [(conversations,)] = await _query(conn, _CONVERSATIONS, period)
    ai_messages = await _query(conn, _AI_MESSAGES, period)

    def of(direction: str) -> tuple[int, dict[str, int]]:
        rows = [row for row in messages if row[0] == direction]
        return sum(row[2] for row in rows), _sums((row[1], row[3]) for row in rows)

    return {
        "messages": sum(row[2] for row in messages),
        "conversations": conversations,
        "costs": _sums((row[1], row[3]) for row in messages),
        "inbound": of("INBOUND"),
        "outbound": of("OUTBOUND"),
        "models": {
            model: (*_usage(rows), *_latency(rows), len({code for row in rows for code in row[8]}))
            for model, rows in _grouped(ai_messages, 0)
        },
        "days": [_usage(rows) for _, rows in _grouped(ai_messages, 1)],
    }


async def _query(conn: psycopg.AsyncConnection[Any], query: str, period: Period) -> list[Any]:
    return await (await conn.execute(query.encode(), period._asdict())).fetchall()


_PERIOD = "salon_id = %(salon_id)s AND {0} >= %(start_time)s AND {0} < %(end_time)s"
_MESSAGES = f"""
    SELECT direction, currency_code, count(*) FILTER (WHERE counted), sum(cost_micros)::bigint FROM messages
    WHERE {_PERIOD.format("created_at")} GROUP BY 1, 2"""
_CONVERSATIONS = f"SELECT count(*) FROM conversations WHERE {_PERIOD.format('started_at')}"
_ZONE = "(SELECT time_zone FROM salons WHERE salon_id = %(salon_id)s)"
_AI_MESSAGES = f"""
    SELECT model, date_trunc('day', created_at AT TIME ZONE {_ZONE}),
        currency_code, count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost_micros)::bigint,
        ARRAY[sum(latency_ms), max(latency_ms)],
        coalesce(array_agg(DISTINCT booking_code) FILTER (WHERE booking_code IS NOT NULL), '{{}}')
    FROM ai_messages WHERE {_PERIOD.format("created_at")} GROUP BY 1, 2, 3"""


def _grouped(rows: list[Any], column: int) -> Iterator[tuple[Any, list[Any]]]:
    for key in sorted({row[column] for row in rows}):
        yield key, [row for row in rows if row[column] == key]


def _usage(rows: list[Any]) -> tuple[Any, ...]:
    return (*(sum(row[column] for row in rows) for column in (3, 4, 5)), _sums((row[2], row[6]) for row in rows))


def _latency(rows: list[Any]) -> tuple[float, int]:
    average = Decimal(sum(row[7][0] for row in rows)) / sum(row[3] for row in rows)
    return float(average.quantize(Decimal("0.01"), ROUND_HALF_UP)), max(row[7][1] for row in rows)


def _sums(costs: Iterable[tuple[str | None, int]]) -> dict[str, int]:
    """Return the sum of each currency that has costs."""
    sums: Counter[str] = Counter()
    for currency, cost in costs:
        sums[currency or ""] += cost
    return {currency: cost for currency, cost in sums.items() if cost}
