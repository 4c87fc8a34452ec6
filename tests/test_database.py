"""libs/db: settings, pool, slow-query log, and callers during an outage."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL
from pydantic import SecretStr

from libs.db import Database, DatabaseSettings, DatabaseUnavailable, PoolExhausted, split_pool_parameters
from ops.servers import Postgres
from tests.load import until

POOL_URL = (
    "postgresql://u:hidden@db:5432/parlor?connection_limit=7&sslmode=disable&pool_timeout=8&statement_cache_size=9"
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the environment of the test run."""
    for name in ("DATABASE_URL", "DB_CONNECTION_LIMIT", "DB_POOL_TIMEOUT", "DB_STATEMENT_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Database]:
    """Open a pool."""
    database = Database(DatabaseSettings(url=SecretStr(url), **settings), "test")
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def value(database: Database, query: str, *params: Any) -> Any:
    """Return the only value of a statement."""
    async with database.connection() as conn:
        [(answer,)] = await (await conn.execute(query.encode(), params)).fetchall()
    return answer


def test_pool_parameters_of_the_url_are_settings_and_are_not_passed_to_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", POOL_URL)
    settings = DatabaseSettings.read("DATABASE_URL")
    assert (settings.connection_limit, settings.pool_timeout, settings.statement_cache_size) == (7, 8, 9)
    assert settings.url.get_secret_value() == "postgresql://u:hidden@db:5432/parlor?sslmode=disable"


@pytest.mark.parametrize(
    "url",
    [
        "host=db dbname=parlor",
        "postgresql://db/parlor",
        "postgres:///parlor?host=%2Ftmp",
        "postgresql://db/parlor?options=-c%20search_path%3Da%26b&application_name=a+b",
    ],
)
def test_a_url_without_pool_parameters_is_unchanged(url: str) -> None:
    kept, taken = split_pool_parameters(url)
    assert psycopg.conninfo.conninfo_to_dict(kept) == psycopg.conninfo.conninfo_to_dict(url)
    assert taken == {}


def test_an_explicit_variable_overrides_the_url_even_an_invalid_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", POOL_URL.replace("=7", "=many"))
    monkeypatch.setenv("DB_CONNECTION_LIMIT", "3")
    settings = DatabaseSettings.read("DATABASE_URL")
    assert (settings.connection_limit, settings.pool_timeout) == (3, 8)


def test_the_first_variable_that_is_set_names_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", POOL_URL)
    monkeypatch.setenv("STATS_DATABASE_URL", "postgresql://stats/x")
    settings = DatabaseSettings.read("STATS_DATABASE_URL", "DATABASE_URL")
    assert settings.url.get_secret_value() == "postgresql://stats/x"
    assert DatabaseSettings.read("BOOKING_DATABASE_URL", "DATABASE_URL").connection_limit == 7


@pytest.mark.parametrize(
    ("name", "bad", "named"),
    [
        ("DB_POOL_TIMEOUT", "soon", ["pool_timeout"]),
        ("DB_CONNECTION_LIMIT", "0", ["connection_limit"]),
        ("DATABASE_URL", POOL_URL.replace("=7", "=-1"), ["DATABASE_URL", "connection_limit"]),
        ("DATABASE_URL", POOL_URL.replace("=9", "="), ["DATABASE_URL", "statement_cache_size"]),
        ("DATABASE_URL", "postgresql://u:hidden@db/parlor?nonsense=1", ["DATABASE_URL", "nonsense"]),
        ("DATABASE_URL", "mysql://u:hidden@db/parlor", ["DATABASE_URL"]),
        ("DATABASE_URL", "", ["DATABASE_URL is not set"]),
    ],
)
def test_the_error_of_a_bad_value_names_its_variable_and_hides_the_password(
    monkeypatch: pytest.MonkeyPatch, name: str, bad: str, named: list[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", POOL_URL)
    monkeypatch.setenv(name, bad)
    with pytest.raises(ValueError, match=".*".join(named)) as caught:
        DatabaseSettings.read("DATABASE_URL")
    assert "hidden" not in str(caught.value)


def test_settings_show_no_password() -> None:
    assert "hidden" not in repr(DatabaseSettings(url=SecretStr(POOL_URL)))


async def test_settings_reach_the_server(database_url: str) -> None:
    async with opened(database_url, query_timeout=1234, connection_limit=2) as database:
        assert await value(database, "SHOW statement_timeout") == "1234ms"
        assert await value(database, "SHOW timezone") == "UTC"
        assert await value(database, "SHOW application_name") == "test"
        assert database.pool.max_size == 2


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (2, 2), (100, 5)])
async def test_the_setting_limits_the_number_of_prepared_statements(database_url: str, size: int, kept: int) -> None:
    async with opened(database_url, statement_cache_size=size) as database, database.connection() as conn:
        for number in [1, 2, 3, 4, 5] * 2:
            assert (await conn.fetch(f"SELECT '{number}' || $1::text", ["!"]))[1] == [(f"{number}!".encode(),)]
        cursor = await conn.execute("SELECT count(*) FROM pg_prepared_statements")
        assert await cursor.fetchall() == [(kept,)]


async def test_a_cursor_prepares_nothing_and_its_rollback_deallocates_nothing(database_url: str) -> None:
    """Cursors would use the same names in every process, so that a pooler could mix their statements up."""
    async with opened(database_url) as database, database.connection() as conn:
        for _ in range(3):
            assert (await conn.fetch("SELECT $1::text", ["a"]))[1] == [(b"a",)]
            await conn.execute("SELECT %s::text", ["b"], prepare=True)
            async with conn.transaction(force_rollback=True):
                await conn.execute("SELECT 1")
            cursor = await conn.execute("SELECT statement FROM pg_prepared_statements")
            assert await cursor.fetchall() == [("SELECT $1::text",)]
        assert database.queries.errors == 0


async def test_a_statement_over_its_timeout_is_canceled_by_the_server_and_counted(database_url: str) -> None:
    async with opened(database_url, query_timeout=1000) as database:
        with pytest.raises(psycopg.errors.QueryCanceled):
            await value(database, "SELECT pg_sleep(60)")
        assert database.queries.errors == 1
        assert await value(database, "SELECT 1") == 1


async def test_the_slow_query_log_keeps_the_last_hundred_and_no_parameters(database_url: str) -> None:
    settings = {"slow_query_threshold": 0, "connection_limit": 1}
    async with opened(database_url, **settings) as database, database.connection() as conn:
        queries = database.queries
        executed, slow_total = queries.executed, queries.slow_total
        for number in range(150):
            await conn.execute(SQL("SELECT\n  {},   %s").format(number), ("+4915112345678",))
        assert [slow.query for slow in queries.slow] == [f"SELECT {number}, %s" for number in range(50, 150)]
        assert (queries.executed - executed, queries.slow_total - slow_total) == (150, 150)
        assert "49151" not in repr(queries)
        assert all(slow.duration_ms > 0 for slow in queries.slow)
        assert list(queries.slow) == sorted(queries.slow, key=lambda slow: slow.time)


async def test_the_slow_query_log_shows_a_statement_as_one_line(database_url: str) -> None:
    async with opened(database_url, slow_query_threshold=0) as database:
        await value(database, "SELECT\n  1")
        assert database.queries.slow[-1].query == "SELECT 1"


async def test_a_quick_statement_is_not_logged_as_slow(database_url: str) -> None:
    async with opened(database_url, slow_query_threshold=2000) as database:
        await value(database, "SELECT 1")
        assert not database.queries.slow
        await value(database, "SELECT pg_sleep(2.01)::text")
        assert [slow.duration_ms >= 2010 for slow in database.queries.slow] == [True]


async def test_waits_for_a_connection_are_timed(database_url: str) -> None:
    async with opened(database_url, connection_limit=1) as database:

        async def hold() -> None:
            await value(database, "SELECT pg_sleep(0.1)::text")

        await asyncio.gather(*(hold() for _ in range(3)))
        assert database.acquisitions == 3
        assert database.acquisition_seconds >= 0.1 + 0.2
        assert database.exhaustions == 0


async def test_an_exhausted_pool_fails_after_the_acquisition_timeout_and_is_counted(database_url: str) -> None:
    async with opened(database_url, connection_limit=1, pool_timeout=1) as database:
        async with database.connection():
            started = time.perf_counter()
            with pytest.raises(PoolExhausted):
                await value(database, "SELECT 1")
            assert 0.9 < time.perf_counter() - started < 5
            assert database.exhaustions == 1
        assert await value(database, "SELECT 1") == 1


async def test_callers_beyond_the_queue_limit_fail_at_once(database_url: str) -> None:
    async with opened(database_url, connection_limit=1) as database:
        async with database.connection():
            waiting = [asyncio.create_task(value(database, "SELECT 1")) for _ in range(60)]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            assert all(isinstance(task.exception(), PoolExhausted) for task in done)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert answers.count(1) == 50
        assert database.exhaustions == 10


async def test_the_connection_released_last_is_acquired_next_unless_a_caller_waits(database_url: str) -> None:
    async with opened(database_url, connection_limit=1) as database:
        turns: list[str] = []

        async def turn(name: str) -> None:
            async with database.connection():
                turns.append(name)

        async with database.connection() as conn:
            waiting = asyncio.create_task(turn("waited"))
            await until(lambda: database.pool.get_stats().get("requests_waiting", 0) == 1)
        await turn("came later")
        assert waiting.done()
        assert turns == ["waited", "came later"]
        async with database.connection() as same:
            assert same is conn
            assert database.idle == 0
        assert database.idle == 1
        await until(lambda: database.pool.get_stats()["pool_available"] == 1)  # the pool ends it when it is old
        assert database.idle == 1
    assert conn.closed


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
async def test_a_transaction_left_open_is_rolled_back(database_url: str, error: type[Exception] | None) -> None:
    async with opened(database_url, connection_limit=1) as database:
        try:
            async with database.connection() as conn:
                await conn.execute("BEGIN; CREATE TABLE left_open ()")
                if error:
                    raise error
        except ZeroDivisionError:
            assert error
        assert await value(database, "SELECT to_regclass('left_open')::text") is None


async def test_callers_canceled_while_they_wait_leak_no_connection(database_url: str) -> None:
    async with opened(database_url, connection_limit=2) as database:
        for ticks in range(40):
            calls = [asyncio.create_task(value(database, "SELECT 1")) for _ in range(6)]
            for _ in range(ticks):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        await until(lambda: database.idle == 2)  # a busy machine may still be replacing those of canceled statements
        assert await asyncio.gather(*(value(database, "SELECT 1") for _ in range(20))) == [1] * 20


async def test_a_killed_database_fails_all_callers_at_once_and_is_back_within_two_seconds(
    own_postgres: Postgres,
) -> None:
    changes: list[bool] = []
    back = asyncio.Event()

    async def tell(available: bool) -> None:
        changes.append(available)
        if changes == [True, False, True]:
            back.set()

    database = Database(DatabaseSettings(url=SecretStr(own_postgres.dsn), connection_limit=1), "test")
    await database.open(tell)
    try:
        assert await value(database, "SELECT 1") == 1
        async with database.connection():
            waiting = [asyncio.create_task(value(database, "SELECT 1")) for _ in range(5)]
            await asyncio.wait(waiting, timeout=0.01)
            started = time.perf_counter()
            own_postgres.kill()
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 5
            assert time.perf_counter() - started < 5  # the pool's own timeout is 20 s
        started = time.perf_counter()
        with pytest.raises(DatabaseUnavailable):
            await value(database, "SELECT 1")
        assert time.perf_counter() - started < 0.1
        own_postgres.start()
        started = time.perf_counter()
        await asyncio.wait_for(back.wait(), 10)
        assert await value(database, "SELECT 1") == 1
        assert time.perf_counter() - started < 2
        assert database.lost > 0
    finally:
        await database.close()


async def test_a_pool_opens_and_closes_without_its_database(own_postgres: Postgres) -> None:
    own_postgres.kill()
    async with opened(own_postgres.dsn) as database:
        with pytest.raises(DatabaseUnavailable):
            await value(database, "SELECT 1")
        assert (database.available, database.exhaustions) == (False, 0)
