"""libs/db: connections on both event loops that wait, fail, are canceled or are lost."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import psycopg
import pytest
import uvloop
from psycopg.pq import TransactionStatus
from pydantic import SecretStr

from libs.db import (
    BEGIN,
    COMMIT,
    Connection,
    Database,
    DatabaseSettings,
    DatabaseUnavailable,
    QueryStats,
    Statement,
    no_result,
)
from libs.messages import fetch_rows
from tests.load import until

LOOPS = [asyncio.run, uvloop.run]
Run = Callable[[Coroutine[Any, Any, None]], None]
TWICE = "SELECT $1::text AS once, $1::text || $2 AS twice"
Send = Callable[[Connection, str, list[str]], Awaitable[Any]]


async def by_cursor(conn: Connection, query: str, params: list[str]) -> Any:
    cursor = conn.cursor(binary=True)
    await cursor.execute(query.replace("$1", "%s").encode(), params)
    return [
        tuple(value.encode() if isinstance(value, str) else value for value in row) for row in await cursor.fetchall()
    ]


async def by_fetch(conn: Connection, query: str, params: list[str]) -> Any:
    return (await conn.fetch(query, params))[1]


async def by_run(conn: Connection, query: str, params: list[str]) -> Any:
    [_, found] = await conn.run(ONE, statement(query, params))
    return found


def statement(query: str, params: list[str]) -> Statement[list[Any]]:
    """Return a statement whose result is its rows."""
    return Statement(query.replace("$1", "%(text)s"), dict.fromkeys(["text"], *params[:1]), lambda _, rows: rows)


ONE = Statement("SELECT 1", {}, no_result)
every_way = pytest.mark.parametrize("send", [by_cursor, by_fetch, by_run])


async def connect(url: str) -> Connection:
    conn = await Connection.connect(url, autocommit=True, prepare_threshold=None)
    conn.queries, conn.most_prepared = QueryStats(threshold=60), 100
    return conn


@pytest.mark.parametrize(("most", "kept"), [(100, 1), (0, 0)])
async def test_a_fetch_is_prepared_at_its_first_use_if_statements_may_be_prepared(
    database_url: str, most: int, kept: int
) -> None:
    async with await connect(database_url) as conn:
        conn.most_prepared = most
        for value in ("a", "é"):
            names, rows = await conn.fetch(TWICE, [value, "b"])
            assert names == ["once", "twice"]
            assert rows == [(value.encode(), f"{value}b".encode())]
        _, [(prepared,)] = await fetch_rows(conn, "SELECT count(*) FROM pg_prepared_statements", [])
        assert prepared == kept
        assert conn.queries.executed == 3


@pytest.mark.parametrize(
    ("query", "param", "error"),
    [
        ("SELECT $1::text FROM nothing", "a", psycopg.errors.UndefinedTable),
        ("SELECT $1::int", "a", psycopg.errors.InvalidTextRepresentation),
        ("SELECT $1::text", "a\0b", psycopg.DataError),
        ("SELECT $1::text, pg_terminate_backend(pg_backend_pid())", "a", psycopg.OperationalError),
    ],
)
async def test_a_failed_fetch_is_counted_and_leaves_a_live_connection_usable(
    database_url: str, query: str, param: str, error: type[Exception]
) -> None:
    async with await connect(database_url) as conn:
        for count in (1, 2):
            with pytest.raises(error if count == 1 or not conn.broken else psycopg.OperationalError):
                await conn.fetch(query, [param])
            assert conn.queries.errors == count
        if not conn.broken:
            assert (await conn.fetch(TWICE, ["a", "b"]))[1] == [(b"a", b"ab")]


@every_way
@pytest.mark.parametrize("run", LOOPS)
def test_closing_a_connection_ends_its_statement(database_url: str, run: Run, send: Send) -> None:
    async def close() -> None:
        conn = await connect(database_url)
        statement = asyncio.ensure_future(send(conn, "SELECT pg_sleep(60)", []))
        await until(lambda: conn.pgconn.transaction_status == TransactionStatus.ACTIVE)
        await conn.close()
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(statement, 5)

    run(close())


@pytest.mark.parametrize("run", LOOPS)
def test_an_answer_missed_by_the_event_loop_is_read(database_url: str, run: Run) -> None:
    async def lose() -> None:
        async with await connect(database_url) as conn:
            statement = asyncio.create_task(conn.fetch("SELECT pg_sleep(0.05)", []))
            await until(lambda: conn._watched >= 0)
            asyncio.get_running_loop().remove_reader(conn._watched)
            await asyncio.wait_for(statement, 5)
            await asyncio.wait_for(conn.fetch("SELECT pg_sleep(0.05)", []), 5)

    run(lose())


@every_way
@pytest.mark.parametrize("run", LOOPS)
def test_a_canceled_statement_ends_on_the_server_and_leaves_the_connection_usable(
    database_url: str, run: Run, send: Send
) -> None:
    async def cancel() -> None:
        async with await connect(database_url) as conn, await connect(database_url) as other:
            asleep = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"

            async def sleeping() -> bool:
                return bool((await other.execute(asleep, [conn.info.backend_pid])).rowcount)

            statement = asyncio.ensure_future(send(conn, "SELECT pg_sleep(60)", []))
            await until(sleeping)
            statement.cancel()
            with pytest.raises(asyncio.CancelledError):
                await statement
            assert not await sleeping()
            assert conn.pgconn.transaction_status == TransactionStatus.IDLE
            assert await send(conn, "SELECT $1::text", ["a"]) == [(b"a",)]

    run(cancel())


@every_way
@pytest.mark.parametrize("run", LOOPS)
def test_data_larger_than_the_socket_buffer_passes_both_ways(database_url: str, run: Run, send: Send) -> None:
    async def pass_through() -> None:
        async with await connect(database_url) as conn:
            text = "x" * 8_000_000
            for _ in range(2):
                assert await send(conn, "SELECT $1::text", [text]) == [(text.encode(),)]

    run(pass_through())


@pytest.mark.parametrize("run", LOOPS)
def test_connections_ended_by_the_server_are_replaced(database_url: str, run: Run) -> None:
    async def end() -> None:
        database = Database(DatabaseSettings(url=SecretStr(database_url), connection_limit=2), "ended")
        await database.open()
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'ended'"

        async def usable() -> bool:
            try:
                async with database.connection() as conn, database.connection() as second:
                    await asyncio.gather(conn.execute("SELECT 1"), second.execute("SELECT 1"))
            except (psycopg.OperationalError, DatabaseUnavailable):  # the probe's connection was ended twice
                return False
            return True

        async with await connect(database_url) as other:
            for _ in range(3):
                await other.execute(query)
                await until(usable)
        await database.close()

    run(end())


async def test_statements_in_one_round_trip_stop_at_the_first_error(database_url: str) -> None:
    async with await connect(database_url) as conn:
        await conn.execute("CREATE TEMPORARY TABLE seen (text text)")
        add = [Statement("INSERT INTO seen VALUES (%(text)s)", {"text": text}, no_result) for text in "abc"]
        for _ in range(2):  # first prepared, then already prepared
            with pytest.raises(psycopg.errors.InvalidTextRepresentation):
                await conn.run(BEGIN, add[0], statement("SELECT $1::int", ["x"]), add[1], COMMIT)
            assert conn.pgconn.transaction_status == TransactionStatus.INERROR
            await conn.rollback()
        assert await conn.run(BEGIN, add[2], COMMIT) == [None] * 3
        _, rows = await fetch_rows(conn, "SELECT text FROM seen", [])
        assert rows == [("c",)]
        assert conn.queries.errors == 2


async def test_an_error_of_an_earlier_read_hides_the_error_of_a_later_statement(database_url: str) -> None:
    def refuse(names: list[str], rows: list[Any]) -> None:
        raise LookupError

    async with await connect(database_url) as conn:
        with pytest.raises(LookupError):
            await conn.run(Statement("SELECT 1", {}, refuse), statement("SELECT $1::int", ["x"]))
        assert await by_run(conn, "SELECT $1::text", ["a"]) == [(b"a",)]


async def test_statements_deallocated_by_psycopg_are_prepared_again(database_url: str) -> None:
    select = statement("SELECT $1::text", ["a"])
    async with await connect(database_url) as conn:
        await conn.run(select)
        await conn.execute("DEALLOCATE ALL")
        assert await conn.run(BEGIN, select, COMMIT) == [None, [(b"a",)], None]
        await conn.run(BEGIN, select)
        await conn.rollback()
        _, [(kept,)] = await fetch_rows(conn, "SELECT count(*) FROM pg_prepared_statements", [])
        assert kept == 1
        await conn.run(BEGIN)
        await conn.execute("DEALLOCATE ALL")
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):  # the transaction can't be repeated
            await conn.run(select)
        await conn.rollback()
        assert await conn.run(select) == [[(b"a",)]]


async def test_no_statement_is_prepared_if_none_may_be(database_url: str) -> None:
    async with await connect(database_url) as conn:
        conn.most_prepared = 0
        for text in ("a", "é"):
            assert await by_run(conn, "SELECT $1::text", [text]) == [(text.encode(),)]
        _, [(kept,)] = await fetch_rows(conn, "SELECT count(*) FROM pg_prepared_statements", [])
        assert kept == 0


async def test_outside_a_transaction_a_block_is_left_without_a_statement(database_url: str) -> None:
    """A caller that is canceled during that statement would leave the connection open."""
    async with await connect(database_url) as conn:
        async with await connect(database_url) as other:
            await other.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
    assert conn.closed
