"""GetSalonStats, 31 days of the biggest salon: the time of its statement compared with the report's subqueries."""

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from statistics import median

import pytest
from psycopg import sql

from libs.db import Connection, QueryStats
from ops.migrate import migrate
from ops.sample_data import load_sample_data
from ops.servers import Postgres
from parlor.stats.v1.stats_pb2 import SalonStats
from services.messaging.rollups import Rollups
from services.stats.queries import Period, salon_stats
from tests.benchmarks.cases import SALON
from tests.rollups import connecting

ROUNDS = 15
START = datetime(2024, 12, 15, tzinfo=UTC)
END = START + timedelta(days=31)

# From the report, "Raw SQL for Analytics"; its cost is our cost_micros.
REPORT = """
    SELECT
      (SELECT COUNT(*) FROM bookings WHERE salon_id = {salon} AND start_ts >= {start} AND start_ts < {end}) as bookings,
      (SELECT COUNT(*) FROM messages WHERE salon_id = {salon} AND created_at >= {start} AND created_at < {end})
        as messages,
      (SELECT COUNT(*) FROM conversations WHERE salon_id = {salon} AND started_at >= {start} AND started_at < {end})
        as conversations,
      (SELECT COALESCE(SUM(cost_micros), 0) FROM messages
        WHERE salon_id = {salon} AND created_at >= {start} AND created_at < {end}) as total_cost"""

# Postgres logs the run time of each statement without planning, as EXPLAIN (ANALYZE, TIMING OFF) would.
EXPLAINED = """
    LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on;
    SET auto_explain.log_timing = off; SET client_min_messages = log; SET plan_cache_mode = force_generic_plan"""


@pytest.fixture(scope="module")
def sample_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The sample data at scale 1, summed by hour."""
    with Postgres(tmp_path_factory.mktemp("stats") / "postgres") as server:
        migrate(server.dsn)
        load_sample_data(server.dsn, 1)
        asyncio.run(Rollups(connecting(server.dsn)).advance())
        yield server.dsn


async def test_the_statement_takes_at_most_0_4_of_the_time_of_four_subqueries(sample_url: str) -> None:
    report = sql.SQL(REPORT).format(salon=SALON, start=START, end=END)
    plans: list[tuple[float, str]] = []
    figures: dict[str, list[float]] = {"report": [], "ours": []}
    async with await Connection.connect(sample_url, autocommit=True, prepare_threshold=None) as conn:
        conn.queries, conn.most_prepared = QueryStats(threshold=60), 100
        await conn.execute(EXPLAINED, prepare=False)
        conn.add_notice_handler(lambda notice: plans.append(_duration(notice.message_primary or "")))
        for _ in range(ROUNDS):
            expected = await (await conn.execute(report, prepare=False)).fetchone()
            figures["report"].append(plans[-1][0])
            [counted] = await salon_stats(conn, [Period(SALON, START, END)])
            assert isinstance(counted.value, bytes)
            stats = SalonStats.FromString(counted.value)
            figures["ours"].append(plans[-1][0])
    assert expected == (stats.bookings, stats.messages, stats.conversations, stats.total_cost_micros)
    # Tables that are small, or read at the edges of a period only: message_quarters has rows of archived months.
    small = "salons|wanted|rollups|idx_message_deltas|idx_conversation_deltas|idx_message_quarters"
    assert re.findall(rf"(?<!Index Only) Scan \w* ?(?:on|using) (?!{small})\w+", plans[-1][1]) == []
    ratio = median(figures["ours"]) / median(figures["report"])
    print(f"\n{figures['report'][-1]:.2f} ms, {figures['ours'][-1]:.2f} ms: {ratio:.2f}")
    assert ratio <= 0.4


def _duration(notice: str) -> tuple[float, str]:
    """Return the ms and the plan from a notice of auto_explain."""
    match = re.match(r"duration: ([\d.]+) ms  plan:", notice)
    assert match
    return float(match[1]), notice
