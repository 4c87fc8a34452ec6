"""Each step of the rollup job is needed: without it, an interleaving makes the statistics differ from the rows.

Every test runs twice: with our steps, which must be exact, and with the variant of the test's name, which must not be.
So each test is able to fail.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from services.messaging import rollup_queries
from services.messaging.rollup_queries import (
    FOLD_AI_MESSAGES,
    FOLD_MESSAGES,
    alone,
    fold_deltas,
    is_passed,
    publish,
    seal,
    take_barrier,
)
from tests.rollups import connection, create_salons, insert_ai_message, insert_message, is_exact

Conn = psycopg.AsyncConnection[Any]
twice = pytest.mark.parametrize("variant", [False, True], ids=["ours", "variant"])
LAG = 60  # minutes: how old the rows have to be that the job sums
SEEN_DELTAS = """, counted_messages AS (
        DELETE FROM message_deltas WHERE created_at >= (SELECT sealed_to FROM rollups) AND created_at < %(end)s
    )"""


@pytest.fixture
def url(database_url: str) -> str:
    """A database with salons, of which nothing is summed."""
    create_salons(database_url)
    return database_url


@pytest.fixture
async def job(url: str) -> AsyncIterator[Conn]:
    """The job's connection."""
    async with await connection(url) as conn:
        yield conn


@pytest.fixture
async def writer(url: str) -> AsyncIterator[Conn]:
    """A writer's connection, in autocommit mode."""
    async with await connection(url) as conn:
        yield conn


@pytest.fixture
def late() -> datetime:
    """A time that the job sums."""
    return datetime.now(UTC) - timedelta(hours=3)


async def passes(conn: Conn, barrier: int) -> None:
    """Wait for the transactions of other tests."""
    async with asyncio.timeout(30):
        while True:
            if await is_passed(conn, barrier):
                return
            await asyncio.sleep(0.01)


async def run_job(conn: Conn) -> datetime:
    """Take all steps of a run but the fold; return how far rows are summed."""
    horizon = await publish(conn, LAG)
    await passes(conn, await take_barrier(conn))
    return await seal(conn, horizon)


async def rewrite(conn: Conn, function: str, *replacements: tuple[str, str]) -> None:
    """Replace parts of a function in the database."""
    cursor = await conn.execute("SELECT pg_get_functiondef(%s::regproc)", [function])
    [(text,)] = await cursor.fetchall()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    await conn.execute(text.encode())


@twice
async def test_no_barrier(url: str, job: Conn, writer: Conn, late: datetime, variant: bool) -> None:
    """A writer that has not seen the horizon commits after the seal has looked."""
    async with writer.transaction():
        await insert_message(writer, late)
        horizon = await publish(job, LAG)
        barrier = await take_barrier(job)
        if variant:
            await seal(job, horizon)
        assert not await is_passed(job, barrier)
    await passes(job, barrier)
    if not variant:
        await seal(job, horizon)
    assert await is_exact(url) is not variant


@twice
async def test_keep_deltas(
    url: str, job: Conn, writer: Conn, late: datetime, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    """A row that came between publish and seal is in the sum, and its delta is still there."""
    if variant:
        assert SEEN_DELTAS in rollup_queries.SEAL
        monkeypatch.setattr(rollup_queries, "SEAL", rollup_queries.SEAL.replace(SEEN_DELTAS, ""))
    horizon = await publish(job, LAG)
    await insert_message(writer, late)
    await passes(job, await take_barrier(job))
    await seal(job, horizon)
    assert await is_exact(url) is not variant


@twice
async def test_fold_two_statements(url: str, job: Conn, writer: Conn, late: datetime, variant: bool) -> None:
    """A delta that is committed between adding the deltas and deleting them is deleted without being added."""
    await run_job(job)
    await insert_message(writer, late)
    async with alone(job):
        if variant:
            deltas = "FROM message_deltas WHERE created_at < (SELECT sealed_to FROM rollups)"
            await job.execute(
                "INSERT INTO message_hours SELECT salon_id, date_bin('1 hour', created_at, 'epoch'), direction,"
                f" currency_code, sum(messages), sum(cost_micros) {deltas} GROUP BY 1, 2, 3, 4".encode()
            )
            await insert_message(writer, late)
            await job.execute(f"DELETE {deltas}".encode())
        else:
            await job.execute(FOLD_MESSAGES.encode(), {"rows": 10})
            await insert_message(writer, late)
    assert await is_exact(url) is not variant


@twice
async def test_barrier_before_publish(url: str, job: Conn, writer: Conn, late: datetime, variant: bool) -> None:
    """A writer takes its ID after the barrier and looks at the horizon before it is published."""
    barrier = await take_barrier(job)
    async with writer.transaction():
        await insert_message(writer, late)
        horizon = await publish(job, LAG)
        if not variant:
            barrier = await take_barrier(job)
            assert not await is_passed(job, barrier)
        else:
            await passes(job, barrier)
            await seal(job, horizon)
    if not variant:
        await passes(job, barrier)
        await seal(job, horizon)
    assert await is_exact(url) is not variant


@twice
async def test_no_repeatable_read_rule(url: str, job: Conn, writer: Conn, late: datetime, variant: bool) -> None:
    """A writer under REPEATABLE READ, without an ID yet, sees the horizon as it was before the run."""
    if variant:
        rule = "current_setting('transaction_isolation') = 'read committed'\n        AND "
        await rewrite(job, "leave_message_delta", (rule, ""))
    await writer.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    async with writer.transaction():
        await writer.execute("SELECT FROM rollups")
        await run_job(job)
        await insert_message(writer, late)
    assert await is_exact(url) is not variant


@twice
async def test_horizon_in_the_inserts_statement(
    url: str, job: Conn, writer: Conn, late: datetime, variant: bool
) -> None:
    """A statement has its snapshot before it has an ID: it may wait in between, here for a lock, during a whole run."""
    await job.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;"
        " CREATE TRIGGER wait BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION wait()"
    )
    if variant:
        await job.execute(
            "CREATE FUNCTION horizon_now() RETURNS timestamptz STABLE LANGUAGE sql"
            " AS 'SELECT horizon FROM rollups';"
            " ALTER TABLE messages ADD COLUMN horizon timestamptz; ALTER TABLE messages"
            " ALTER COLUMN horizon SET DEFAULT horizon_now()"
        )
        await rewrite(job, "leave_message_delta", ("(SELECT horizon FROM rollups)", "NEW.horizon"))
    async with await connection(url) as other:
        async with other.transaction():
            await other.execute("SELECT pg_advisory_xact_lock(1)")
            waiting = asyncio.create_task(insert_message(writer, late))
            await is_blocked(job, writer)
            await run_job(job)
        await waiting
    assert await is_exact(url) is not variant


async def is_blocked(conn: Conn, blocked: Conn) -> None:
    """Wait until a connection waits for a lock."""
    async with asyncio.timeout(30):
        while True:
            cursor = await conn.execute("SELECT pg_blocking_pids(%s)", [blocked.info.backend_pid])
            if await cursor.fetchall() != [([],)]:
                return
            await asyncio.sleep(0.01)


@twice
async def test_seal_two_snapshots(
    url: str, job: Conn, writer: Conn, late: datetime, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    """A delta is committed after the rows were counted, and deleted with those whose rows were."""
    horizon = await publish(job, LAG)
    await passes(job, await take_barrier(job))
    if variant:
        monkeypatch.setattr(rollup_queries, "SEAL", rollup_queries.SEAL.replace(SEEN_DELTAS, ""))
    async with AsyncExitStack() as transaction:
        await transaction.enter_async_context(alone(job))
        await job.execute(rollup_queries.SEAL.encode(), {"end": horizon})
        await insert_message(writer, late)
        if variant:
            await job.execute("DELETE FROM message_deltas WHERE created_at < %s", [horizon])
    assert await is_exact(url) is not variant


@twice
async def test_no_mutex(
    url: str, job: Conn, writer: Conn, late: datetime, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    """Two runs seal the same hours, one after the other has begun."""

    @asynccontextmanager
    async def unlocked(conn: Conn) -> AsyncIterator[None]:
        async with conn.transaction():
            yield

    if variant:
        monkeypatch.setattr(rollup_queries, "alone", unlocked)
    await insert_message(writer, late)
    horizon = await publish(job, LAG)
    await passes(job, await take_barrier(job))
    async with await connection(url) as other:
        async with rollup_queries.alone(job):
            await job.execute(rollup_queries.SEAL.encode(), {"end": horizon})
            second = asyncio.create_task(seal(other, horizon))
            await is_blocked(writer, other)
        await second
    assert await is_exact(url) is not variant


@twice
async def test_one_marker_an_hour(url: str, job: Conn, writer: Conn, late: datetime, variant: bool) -> None:
    """A writer finds that its hour is marked, and leaves no mark; the hour is counted again before it commits."""
    if variant:
        await job.execute(
            "CREATE UNIQUE INDEX one_marker ON ai_message_changes (salon_id, date_bin('1 hour', created_at, 'epoch'))"
        )
        await rewrite(job, "leave_ai_message_change", ("NEW.created_at);", "NEW.created_at) ON CONFLICT DO NOTHING;"))
    await run_job(job)
    await insert_ai_message(writer, late)
    async with writer.transaction():
        await insert_ai_message(writer, late, latency=200)
        await fold_deltas(job, FOLD_AI_MESSAGES)
    assert await is_exact(url) is not variant
