"""What hourly sums cost an insert, and how flat they keep the statistics of 31 days (decision 0061).

A small and a big salon are in one database: 10,000 messages in 200 conversations, and ROLLUP_MESSAGES (1,000,000) in
20,000. Their messages spread over the same hours.
Times are CPU times of Postgres and of this process together: those of a busy machine differ little.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import pytest

from libs.db import Connection
from ops.migrate import migrate
from ops.servers import Postgres
from services.messaging.rollups import Rollups
from services.stats.ai_queries import ai_analytics
from services.stats.queries import Buckets, Period, message_direction_stats, salon_stats
from tests.benchmarks.conftest import Report
from tests.rollups import connecting, connection

CONVERSATIONS = {"small": 200, "big": 20_000}
MESSAGES = {"small": 10_000, "big": int(os.environ.get("ROLLUP_MESSAGES", "1000000"))}
DAYS = 31
ROUNDS = 30
PAIRS = 150  # of rounds of inserts, without the trigger and with it
INSERTS = 40  # of a round
MOST_RATIO = 1.5
MOST_INSERT_RATIO = 1.05
TITLE = "Statistics of 31 days, from rows and from hourly sums: CPU of the statement and of its reply, in ms"
INSERT_TITLE = "Inserts of a message, with and without the trigger of hourly sums: Postgres' CPU in us, ratio of pairs"

FILL = """
    INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES (%(salon)s, %(salon)s, 'Hair', 'UTC');
    INSERT INTO conversations (salon_id, user_id, started_at)
    SELECT %(salon)s, %(salon)s || n, %(start)s::timestamptz + n * %(days)s * interval '1 day' / %(conversations)s
    FROM generate_series(0, %(conversations)s - 1) AS n;
    INSERT INTO messages (salon_id, conversation_id, direction, type, status, cost_micros, currency_code, created_at)
    SELECT c.salon_id, c.conversation_id, CASE n %% 2 WHEN 0 THEN 'INBOUND' ELSE 'OUTBOUND' END, 'TEXT',
        CASE n %% 2 WHEN 0 THEN 'RECEIVED' ELSE 'READ' END, CASE n %% 2 WHEN 0 THEN 0 ELSE 50000 END,
        CASE n %% 2 WHEN 0 THEN NULL ELSE 'EUR' END, c.started_at + n * interval '8 hours' / %(each)s
    FROM conversations AS c, generate_series(1, %(each)s) AS n WHERE c.salon_id = %(salon)s;
    INSERT INTO ai_messages (salon_id, conversation_id, model, role, prompt_tokens, completion_tokens, cost_micros,
        currency_code, latency_ms, created_at)
    SELECT c.salon_id, c.conversation_id, 'm' || n %% 2, 'ASSISTANT', 100, 50, 200, 'USD', 900,
        c.started_at + n * interval '8 hours' / %(each)s
    FROM conversations AS c, generate_series(1, %(each)s / 2) AS n WHERE c.salon_id = %(salon)s"""
INSERT = """
    INSERT INTO messages (salon_id, conversation_id, direction, type, status, content)
    SELECT salon_id, conversation_id, 'INBOUND', 'TEXT', 'RECEIVED', 'See you at ten' FROM conversations
    WHERE salon_id = 'small' LIMIT 1"""

START = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=DAYS + 1)
END = START + timedelta(days=DAYS)
Read = Callable[[Connection, str], Awaitable[Sequence[Any]]]
READS: dict[str, Read] = {
    "GetSalonStats": lambda conn, salon: salon_stats(conn, [Period(salon, START, END)]),
    "GetMessageDirectionStats": lambda conn, salon: message_direction_stats(conn, [Period(salon, START, END)]),
    "GetAiAnalytics": lambda conn, salon: ai_analytics(conn, [Buckets(salon, START, END, "day")]),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Both salons; nothing is summed yet."""
    with Postgres(tmp_path_factory.mktemp("sums") / "postgres") as server:
        migrate(server.dsn)
        with psycopg.connect(server.dsn, autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:
            conn.execute("SET session_replication_role = replica")  # faster: neither triggers nor foreign keys
            for salon, conversations in CONVERSATIONS.items():
                params = {"salon": salon, "start": START, "days": DAYS, "conversations": conversations}
                conn.execute(FILL.encode(), params | {"each": MESSAGES[salon] // conversations})
            conn.execute("VACUUM ANALYZE")
        yield server.dsn


async def test_statistics_of_a_big_salon_take_as_long_as_those_of_a_small_one(url: str, report: Report) -> None:
    async with await connection(url) as conn:
        await _measure(conn, report, "rows", 3)
        await Rollups(connecting(url)).advance()
        await conn.execute(b"VACUUM ANALYZE")
        ratios = await _measure(conn, report, "sums", ROUNDS)
    assert max(ratios.values()) <= MOST_RATIO, ratios


async def _measure(conn: Connection, report: Report, source: str, rounds: int) -> dict[str, float]:
    """Return the ratio of big to small of each read."""
    ratios = {}
    for name, read in READS.items():
        times: dict[str, list[float]] = {salon: [] for salon in MESSAGES}
        for number in range(rounds + 1):
            for salon, found in times.items():
                began = _cpu(conn) + time.process_time()
                await read(conn, salon)
                if number:  # the first one plans
                    found.append(1000 * (_cpu(conn) + time.process_time() - began))
        small, big = (median(found) for found in times.values())
        ratios[name] = big / small
        cells = {
            f"small_{source}": f"{small:.2f}",
            f"big_{source}": f"{big:.2f}",
            f"ratio_{source}": f"{big / small:.2f}",
        }
        report.add(TITLE, name, **cells)
    return ratios


async def test_an_insert_costs_at_most_5_percent_more(url: str, report: Report) -> None:
    await Rollups(connecting(url)).advance()
    times: dict[str, list[float]] = {"DISABLE": [], "ENABLE": []}
    async with await connection(url) as conn:
        await conn.execute(b"SET synchronous_commit = off")
        for _ in range(PAIRS):
            for what, found in times.items():
                await conn.execute(f"ALTER TABLE messages {what} TRIGGER message_delta".encode())
                await conn.execute(INSERT.encode())  # plans
                began = _cpu(conn)
                for _ in range(INSERTS):
                    await conn.execute(INSERT.encode())
                found.append(1e6 * (_cpu(conn) - began) / INSERTS)
    ratio = median(with_trigger / without for without, with_trigger in zip(*times.values(), strict=True))
    report.add(
        INSERT_TITLE,
        "RecordMessage's row",
        without=f"{median(times['DISABLE']):.0f}",
        with_it=f"{median(times['ENABLE']):.0f}",
        ratio=f"{ratio:.3f}",
    )
    assert ratio <= MOST_INSERT_RATIO


def _cpu(conn: Connection) -> float:
    """Return the CPU time of a connection's server process, in s."""
    return int(Path(f"/proc/{conn.info.backend_pid}/schedstat").read_text().split()[0]) / 1e9
