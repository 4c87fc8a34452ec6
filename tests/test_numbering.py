"""A database is refused if its rows do not have the ID of the current transaction."""

import os
import subprocess
import sys

import psycopg
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from libs.db import Database, DatabaseSettings, DatabaseUnavailable, OtherNumbering
from ops.migrate import service_url
from ops.process import free_port
from ops.servers import Postgres
from tests.load import until
from tests.stack import SECRET

REAL = "pg_catalog.pg_current_xact_id()::text::bigint"
OTHER = {"another node's": "12345", "one ahead": f"{REAL} + 1", "far ahead": f"{REAL} + 2147483648"}


def shadow(database_url: str, numbers: str) -> None:
    """Shadow the function for transaction IDs with one that returns other numbers, for the services' logins."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA other")
        conn.execute("GRANT USAGE ON SCHEMA other TO PUBLIC")
        function = f"CREATE FUNCTION other.pg_current_xact_id() RETURNS xid8 RETURN ({numbers})::text::xid8"
        conn.execute(function.encode())
        for role in ("parlor_booking", "parlor_messaging", "parlor_stats"):
            path = f"ALTER ROLE {role} IN DATABASE {conn.info.dbname} SET search_path = other, pg_catalog, public"
            conn.execute(path.encode())


def pool(database_url: str, name: str = "booking") -> Database:
    """Return a service's pool."""
    database = Database(DatabaseSettings(url=SecretStr(service_url(database_url, f"parlor_{name}"))), "test")
    database.canary = None if name == "stats" else f"{name}_requests"
    return database


@pytest.mark.parametrize("numbers", OTHER.values(), ids=OTHER)
@pytest.mark.parametrize("name", ["booking", "messaging"])
async def test_a_database_with_wrong_transaction_ids_is_refused(database_url: str, name: str, numbers: str) -> None:
    shadow(database_url, numbers)
    database = pool(database_url, name)
    try:
        with pytest.raises(OtherNumbering, match="does not number all transactions alike"):
            await database.open()
        assert not database.available
    finally:
        await database.close()


@pytest.mark.parametrize("name", ["booking", "messaging", "stats"])
async def test_transaction_ids_that_have_wrapped_are_accepted(database_url: str, name: str) -> None:
    shadow(database_url, f"{REAL} + 5 * 4294967296")
    database = pool(database_url, name)
    await database.open()
    assert database.available
    await database.close()


async def test_the_check_leaves_no_row(database_url: str) -> None:
    database = pool(database_url)
    await database.open()
    await database.close()
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT count(*) FROM booking_requests").fetchall() == [(0,)]


async def test_a_missing_schema_does_not_fail_the_check(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        conn.execute("DROP TABLE booking_requests")
    database = pool(database_url)
    with capture_logs() as logged:
        await database.open()
    assert database.available
    assert any("transaction numbers failed" in line["event"] for line in logged)
    await database.close()


@pytest.mark.parametrize("name", ["booking", "messaging"])
def test_the_service_exits_with_one_line_if_transaction_ids_are_wrong(
    database_url: str, redis_url: str, name: str
) -> None:
    shadow(database_url, OTHER["another node's"])
    settings = {f"{name.upper()}_DATABASE_URL": service_url(database_url, f"parlor_{name}"), "REDIS_URL": redis_url}
    settings["WHATSAPP_APP_SECRET"] = SECRET
    environment = {**os.environ, **settings, "PORT": str(free_port()), "WORKERS": "1"}
    command = [sys.executable, "-m", f"services.{name}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert ended.returncode == 2
    assert "Traceback" not in ended.stdout + ended.stderr
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith(f"{name}: the database reports 12345 as the current transaction's id")


async def test_a_database_that_starts_after_the_service_is_checked(own_postgres: Postgres) -> None:
    shadow(own_postgres.dsn, OTHER["one ahead"])
    own_postgres.stop()
    database = pool(own_postgres.dsn)
    with capture_logs() as logged:
        await database.open()
        own_postgres.start()
        await until(lambda: any(line["event"] == "database refused" for line in logged))
        with pytest.raises(DatabaseUnavailable):
            await database.acquire()
    await database.close()
