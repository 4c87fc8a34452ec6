"""Behind PgBouncer in transaction mode: statements are not mixed up, none fails, and no session setting leaks."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from libs.db import Connection, Database, DatabaseSettings
from ops.migrate import migrate, service_url
from ops.servers import Postgres, postgres_url
from tests.load import Writer, running_load
from tests.pgbouncer import PREPARES, PROGRAM, PgBouncer, pgbouncer, version
from tests.stack import running

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no pgbouncer: `make .venv/bin/pgbouncer` found none")

CALLS = 40


# Without and with support of prepared statements, which PgBouncer has from 1.21 on.
POOLERS = ["max_prepared_statements = 0", "max_prepared_statements = 100"] if version() >= PREPARES else [""]


@pytest.fixture(params=POOLERS)
def pooler(tmp_path: Path, postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[PgBouncer]:
    """A pooler with three shared connections."""
    with pgbouncer(tmp_path, postgres, more=request.param) as server:
        yield server


@pytest.fixture
def url(pooler: PgBouncer, database_url: str) -> str:
    """The URL of the test's database, through the pooler."""
    return pooler.url(database_url.rpartition("/")[2])


@pytest.fixture
def login(url: str) -> str:
    """The URL of a service's login. Each process logs a warning about one without the defaults of `parlor migrate`."""
    return service_url(url, "parlor_booking")


@pytest.fixture
def unrecognized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new connections not recognize the pooler, as if it passed on the process ID of a server."""
    read_history = Connection.read_history

    async def not_recognized(conn: Connection) -> bool:
        await read_history(conn)
        return False

    monkeypatch.setattr(Connection, "read_history", not_recognized)


@asynccontextmanager
async def pools(url: str, count: int = 2, **settings: Any) -> AsyncIterator[list[Database]]:
    """Run pools like separate processes: each prepares different statements first."""
    async with AsyncExitStack() as exits:
        databases = []
        for number in range(count):
            database = Database(DatabaseSettings(url=SecretStr(url), **settings), f"test-{number}")
            exits.push_async_callback(database.close)
            await database.open()
            databases.append(database)
        yield databases


async def ask(database: Database, number: int) -> None:
    """Send different statements with `fetch` and with cursors; each must get its own result."""
    for turn in range(CALLS):
        word = f"{number} {turn % 3}"
        async with database.connection() as conn:
            _, rows = await conn.fetch(f"SELECT '{word}' || $1::text", ["!"])
            assert rows == [(f"{word}!".encode(),)]
        async with database.connection() as conn:
            cursor = await conn.execute(f"SELECT '{word}' || %s::text".encode(), ["?"])
            assert await cursor.fetchall() == [(f"{word}?",)]


async def ask_all(databases: list[Database]) -> None:
    """Send statements from all pools, on several connections each."""
    await asyncio.gather(*(ask(database, 10 * at + n) for at, database in enumerate(databases) for n in range(4)))


async def test_statements_of_two_processes_are_not_mixed_up(login: str) -> None:
    with capture_logs() as logged:
        async with pools(login) as databases:
            await ask_all(databases)
            assert [database.queries.errors for database in databases] == [0, 0]
    assert len([line for line in logged if line["log_level"] == "warning"]) == 2  # each process logs it once


async def test_with_pgbouncer_in_the_url_nothing_is_prepared_and_nothing_is_logged(login: str) -> None:
    with capture_logs() as logged:
        async with pools(login, pgbouncer=True) as databases:
            await ask_all(databases)
            async with databases[0].connection() as conn:
                cursor = await conn.execute("SELECT count(*) FROM pg_prepared_statements")
                assert await cursor.fetchall() == [(0,)]
            assert [database.queries.errors for database in databases] == [0, 0]
    assert [line for line in logged if line["log_level"] == "warning"] == []


async def test_an_unrecognized_pooler_is_recognized_at_its_first_error_and_no_call_fails(
    login: str, pooler: PgBouncer, unrecognized: None
) -> None:
    with capture_logs() as logged:
        async with pools(login) as databases:
            await ask_all(databases)
    warnings = [line["event"] for line in logged if line["log_level"] == "warning"]
    assert len(warnings) <= 2  # none with a pooler that supports prepared statements
    assert warnings or "100" in pooler.more
    assert all("pgbouncer=true" in event for event in warnings)


async def test_a_cursor_behind_an_unrecognized_pooler_never_runs_a_statement_of_another_connection(
    login: str, unrecognized: None
) -> None:
    async def answer(conn: Connection, word: str) -> Any:
        return await (await conn.execute(f"SELECT '{word}' || %s::text".encode(), ["!"], prepare=True)).fetchall()

    async with AsyncExitStack() as exits, pools(login, 3) as databases:
        one, two, other = [await exits.enter_async_context(database.connection()) for database in databases]
        async with one.transaction(), two.transaction():  # on two servers, each with a statement of its connection
            assert (await answer(one, "one"), await answer(two, "two")) == ([("one!",)], [("two!",)])
        async with other.transaction():  # on one of the two
            await other.execute(b"SELECT")
            assert (await answer(one, "one"), await answer(two, "two")) == ([("one!",)], [("two!",)])


async def test_prepared_statements_of_two_processes_have_different_names(database_url: str) -> None:
    names = set()
    async with pools(database_url) as databases:
        for database in databases:
            async with database.connection() as conn:
                await conn.fetch("SELECT $1::text", ["a"])
                cursor = await conn.execute("SELECT name FROM pg_prepared_statements", prepare=False)
                names |= {name for (name,) in await cursor.fetchall()}
    assert len(names) == 2


@pytest.mark.parametrize("cached", [True, False])
async def test_services_behind_a_pooler_answer_every_call(url: str, redis_url: str, cached: bool) -> None:
    redis = redis_url if cached else "redis://127.0.0.1:1"
    async with running(url, redis) as stack:
        writers = [Writer(stack, f"salon-{number}") for number in range(4)]
        for writer in writers:
            await writer.prepare()
        async with running_load(writers) as load:
            await load.until_answered(300)
        assert load.failed == []


@pytest.mark.parametrize(
    ("setting", "value"), [("statement_timeout", "10s"), ("lock_timeout", "2s"), ("TimeZone", "UTC")]
)
async def test_sessions_of_a_pooler_have_the_defaults_of_their_login(url: str, setting: str, value: str) -> None:
    async with pools(url.replace("postgres@", "parlor_booking@"), 1) as [database]:
        for _ in range(8):
            async with database.connection() as conn, database.connection() as other:
                for each in (conn, other):
                    cursor = await each.execute(f"SHOW {setting}".encode())
                    assert await cursor.fetchall() == [(value,)]


def test_migrations_run_twice_through_a_pooler(pooler: PgBouncer, postgres: Postgres) -> None:
    with psycopg.connect(postgres_url(postgres.port, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE pooled TEMPLATE template0")
        try:
            assert migrate(pooler.url("pooled"))
            assert migrate(pooler.url("pooled")) == []
            assert migrate(postgres_url(postgres.port, "pooled")) == []
        finally:
            admin.execute("DROP DATABASE pooled WITH (FORCE)")
