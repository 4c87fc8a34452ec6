"""Statistics from hourly sums through the RPCs, the job that keeps the sums, and `parlor maintain`."""

import asyncio
import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from libs.db import Connection
from ops.sample_data import load_sample_data
from parlor.messaging.v1 import messaging_pb2
from parlor.stats.v1 import stats_pb2 as pb
from services.messaging import rollups
from services.messaging.rollup_queries import RollupBusy, sealed_seconds
from services.messaging.rollups import Rollups
from tests.load import until
from tests.rollups import (
    connecting,
    connection,
    create_salons,
    insert_ai_message,
    insert_message,
    is_exact,
)
from tests.stack import SALON, Stack, message_request, rows, running, salon

PARLOR = Path(sys.executable).parent / "parlor"
OUTBOUND = messaging_pb2.MESSAGE_DIRECTION_OUTBOUND
NO_CACHE = (("cache-control", "no-cache"),)


async def summed(database_url: str, lag_minutes: int = 0) -> None:
    """Run the job."""
    await Rollups(connecting(database_url)).advance(lag_minutes)


def hours_ago(hours: float) -> datetime:
    """Return a time in the past."""
    return datetime.now(UTC) - timedelta(hours=hours)


def period(start: float, end: float) -> dict[str, Timestamp]:
    """Return the fields of a period, given in hours before now."""
    fields = {"start_time": Timestamp(), "end_time": Timestamp()}
    for field, hours in zip(fields.values(), (start, end), strict=True):
        field.FromDatetime(hours_ago(hours))
    return fields


async def figures(stack: Stack) -> tuple[int, int, dict[str, int]]:
    """Return the messages, the conversations and the costs of the last days, counted now."""
    request = pb.GetSalonStatsRequest(salon_id=SALON, **period(100, -1))
    stats = await stack.stats.GetSalonStats(request, metadata=NO_CACHE)
    return stats.messages, stats.conversations, {cost.currency_code: cost.cost_micros for cost in stats.costs}


async def send(stack: Stack, name: str, hours: float, **fields: Any) -> None:
    """Record an outbound template sent some hours ago."""
    sent = period(hours, 0)["start_time"]
    template = {"direction": OUTBOUND, "type": messaging_pb2.MESSAGE_TYPE_TEMPLATE, "send_time": sent}
    await stack.messaging.RecordMessage(message_request(name, **{**template, **fields}))


async def test_messages_and_costs_that_come_after_the_sums_count(stack: Stack) -> None:
    await salon(stack)
    await send(stack, "wamid.1", 50, cost_micros=3, currency_code="EUR")
    await send(stack, "wamid.2", 3)
    assert await figures(stack) == (2, 1, {"EUR": 3})
    await summed(stack.database_url)
    assert await figures(stack) == (2, 1, {"EUR": 3})
    await send(stack, "wamid.3", 60, cost_micros=4, currency_code="USD", phone_number="+4915112345679")
    status = messaging_pb2.RecordMessageStatusRequest(
        salon_id=SALON,
        whatsapp_id="wamid.2",
        status=messaging_pb2.MESSAGE_STATUS_DELIVERED,
        cost_micros=5,
        currency_code="EUR",
    )
    await stack.messaging.RecordMessageStatus(status)
    assert await figures(stack) == (3, 2, {"EUR": 8, "USD": 4})
    assert rows(stack.database_url, "SELECT count(*) FROM message_deltas") == [(3,)]
    await summed(stack.database_url)
    assert await figures(stack) == (3, 2, {"EUR": 8, "USD": 4})
    assert rows(stack.database_url, "SELECT count(*) FROM message_deltas") == [(0,)]


async def test_a_conversation_whose_first_message_comes_late_moves_to_its_hour(stack: Stack) -> None:
    await salon(stack)
    await send(stack, "wamid.1", 2)
    await summed(stack.database_url)
    await send(stack, "wamid.0", 40)
    request = pb.GetSalonStatsRequest(salon_id=SALON, **period(20, 0))
    for _ in range(2):
        assert (await stack.stats.GetSalonStats(request, metadata=NO_CACHE)).conversations == 0
        assert (await figures(stack))[1] == 1
        await summed(stack.database_url)


async def test_sums_of_truncated_tables_are_gone(database_url: str) -> None:
    create_salons(database_url)
    async with await connection(database_url) as conn:
        await insert_message(conn, hours_ago(5))
        await insert_ai_message(conn, hours_ago(5))
        await summed(database_url)
        await insert_message(conn, hours_ago(5))
        await insert_ai_message(conn, hours_ago(5))
        await conn.execute("TRUNCATE conversations CASCADE")
    assert await is_exact(database_url)
    tables = ("message_hours", "message_deltas", "conversation_hours", "conversation_deltas", "ai_message_hours")
    for table in (*tables, "ai_message_changes"):
        assert rows(database_url, f"SELECT count(*) FROM {table}") == [(0,)]


async def test_replaced_sample_data_has_no_sums_of_the_old_rows(database_url: str) -> None:
    create_salons(database_url)
    async with await connection(database_url) as conn:
        await insert_message(conn, hours_ago(5))
    await summed(database_url)
    await asyncio.to_thread(load_sample_data, database_url, replace=True)
    assert rows(database_url, "SELECT count(*) FROM message_deltas") == [(0,)]
    await summed(database_url)
    query = "SELECT (SELECT sum(messages) FROM message_hours), (SELECT count(*) FROM messages)"
    assert rows(database_url, query) == [(50_000, 50_000)]


async def test_the_largest_latency_falls_when_its_row_is_deleted(database_url: str) -> None:
    create_salons(database_url)
    async with await connection(database_url) as conn:
        for latency in (100, 900, 200):
            await insert_ai_message(conn, hours_ago(5), latency=latency, code="B1")
        await summed(database_url)
        for latency in (900, 200, 100):
            await conn.execute("DELETE FROM ai_messages WHERE latency_ms = %s", [latency])
            assert await is_exact(database_url)
            await summed(database_url)
            assert await is_exact(database_url)


@pytest.mark.parametrize("zone", ["kolkata", "kathmandu", "berlin"])
async def test_days_of_every_time_zone_are_exact_around_midnight(database_url: str, zone: str) -> None:
    create_salons(database_url)
    midnights = rows(
        database_url,
        "SELECT date_trunc('day', now() AT TIME ZONE time_zone) AT TIME ZONE time_zone FROM salons"
        f" WHERE salon_id = '{zone}'",
    )
    midnight = midnights[0][0] - timedelta(days=1)
    async with await connection(database_url) as conn:
        for seconds in (-3599, -1, 0, 1, 3599):
            await insert_ai_message(conn, midnight + timedelta(seconds=seconds), salon_id=zone)
    await summed(database_url)
    assert await is_exact(database_url)


async def test_the_job_runs_soon_after_the_messaging_service_starts(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "FIRST_SECONDS", 0.5)
    create_salons(database_url)
    async with await connection(database_url) as conn:
        await insert_message(conn, hours_ago(5))
    async with running(database_url, redis_url), asyncio.timeout(30):
        while True:
            if rows(database_url, "SELECT FROM message_hours"):
                return
            await asyncio.sleep(0.05)


async def test_a_run_gives_up_while_a_transaction_stays_open_and_the_next_one_goes_on(database_url: str) -> None:
    create_salons(database_url)
    async with await connection(database_url) as writer:
        async with writer.transaction():
            await insert_message(writer, hours_ago(5))
            with pytest.raises(RollupBusy, match="a transaction is open for more than 0 s"):
                await Rollups(connecting(database_url), barrier_seconds=0).advance()
            assert await is_exact(database_url)
        assert await is_exact(database_url)
    await summed(database_url)
    assert rows(database_url, "SELECT sum(messages) FROM message_hours") == [(1,)]


async def test_the_metric_says_how_far_the_sums_go_even_if_only_other_processes_advance_them(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "FIRST_SECONDS", 0)
    create_salons(database_url)
    job = Rollups(connecting(database_url), barrier_seconds=0)

    def metric() -> float:
        (family,) = job.collect()
        return family.samples[0].value

    assert metric() == 0
    await summed(database_url, lag_minutes=60)
    async with await connection(database_url) as writer, writer.transaction():
        await insert_message(writer, hours_ago(5))  # while this is open, a run of `job` fails
        running_job = asyncio.create_task(job.run())
        await until(lambda: metric() > 0)
        running_job.cancel()
    assert rows(database_url, "SELECT extract(epoch FROM sealed_to)::float8 FROM rollups") == [(metric(),)]
    assert time.time() - metric() == pytest.approx(3600, abs=60)


async def test_nothing_is_summed_at_first(database_url: str) -> None:
    async with await connection(database_url) as conn:
        assert await sealed_seconds(conn) == 0


async def test_a_second_run_at_the_same_time_does_no_harm(database_url: str) -> None:
    create_salons(database_url)
    async with await connection(database_url) as conn:
        for hours in range(1, 50):
            await insert_message(conn, hours_ago(hours))
    await asyncio.gather(*(summed(database_url, lag) for lag in (0, 600, 60, 5)))
    assert await is_exact(database_url)
    assert rows(database_url, "SELECT sum(messages) FROM message_hours") == [(49,)]


async def later_writes(conn: Connection, hours: float) -> None:
    """Write rows, change and delete some."""
    for _ in range(3):
        await insert_message(conn, hours_ago(hours))
        await insert_ai_message(conn, hours_ago(hours), latency=int(100 * hours))
    await conn.execute("UPDATE messages SET cost_micros = cost_micros + 1 WHERE message_id IN"
                       " (SELECT message_id FROM messages LIMIT 2)")  # fmt: skip
    await conn.execute("DELETE FROM messages WHERE message_id IN (SELECT message_id FROM messages LIMIT 1)")
    await conn.execute("DELETE FROM ai_messages WHERE latency_ms = (SELECT max(latency_ms) FROM ai_messages)")


# A run with rows to sum and deltas of each kind commits: publish, a seal, and each fold twice, the second time in vain.
POINTS = [f"{moment} commit {number}" for number in (1, 2, 3, 5, 7) for moment in ("before", "after")]


@pytest.mark.parametrize("point", POINTS)
async def test_a_job_killed_at_any_step_leaves_exact_statistics(database_url: str, point: str) -> None:
    create_salons(database_url)
    async with await connection(database_url) as conn:
        await later_writes(conn, 30)
        await summed(database_url, 20 * 60)
        await later_writes(conn, 31)  # deltas of a sealed hour
        await later_writes(conn, 4)  # rows to seal
        await conn.execute("UPDATE conversations SET started_at = started_at - interval '40 hours'")
        arguments = (sys.executable, "-m", "tests.killed_rollup", database_url, point)
        job = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
        assert job.stdout
        assert await job.stdout.readline() == b"stopped\n"
        job.kill()
        await job.wait()
        assert await is_exact(database_url)
        await later_writes(conn, 3)
        await later_writes(conn, 32)
        assert await is_exact(database_url)
    await summed(database_url, 60)
    assert await is_exact(database_url)
    assert rows(database_url, "SELECT count(*) FROM message_deltas") == [(0,)]


def maintain(database_url: str, *options: str) -> tuple[int, str]:
    """Run `parlor maintain`; return its exit code and output."""
    command = [str(PARLOR), "maintain", "--database-url", database_url, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.returncode, done.stdout


def test_parlor_maintain_sums_rows_and_says_how_far(database_url: str) -> None:
    code, text = maintain(database_url)
    assert (code, text.startswith("rollups: rows older than 20")) == (0, True), text
    code, text = maintain(database_url, "--json")
    outcome = json.loads(text)["rollups"]
    assert (code, outcome["ok"], outcome["folded"]) == (0, True, 0)
    assert datetime.now(UTC) - datetime.fromisoformat(outcome["sealed_to"]) < timedelta(minutes=10)


def test_parlor_maintain_exits_with_1_if_a_step_fails(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("ALTER TABLE rollups RENAME COLUMN horizon TO other")
    code, text = maintain(database_url)
    assert (code, text.startswith('rollups: column "horizon" does not exist')) == (1, True), text
    assert json.loads(maintain(database_url, "--json")[1])["rollups"]["ok"] is False
