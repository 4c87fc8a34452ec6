"""Failures of `parlor migrate`: one line with the cause, and a bounded wait."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from ops.migrate import LOCK_NAME, ROLE_DEFAULTS, MigrationBusy, exclusive, migrate
from ops.servers import Postgres, postgres_url

PARLOR = Path(sys.executable).with_name("parlor")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://127.0.0.1:1/parlor", "Connection refused"),
        ("postgresql://nobody:secret@127.0.0.1:1,127.0.0.1:2/parlor", "Connection refused"),
        ("postgresql://127.0.0.1:1/parlor?nonsense=1", "unknown parameter nonsense"),
        ("nonsense", "missing"),
    ],
)
def test_without_a_database_the_error_is_one_line(url: str, reason: str) -> None:
    command = [str(PARLOR), "migrate", "--database-url", url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - ours
    assert ended.returncode == 1
    [line] = (ended.stdout + ended.stderr).strip().splitlines()
    assert reason in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "lock",
    [
        f"BEGIN; SELECT pg_advisory_xact_lock({LOCK_NAME})",
        f"SELECT pg_advisory_lock({LOCK_NAME})",  # the lock of earlier versions
    ],
)
def test_a_run_waits_for_another_and_then_names_it(database_url: str, lock: str) -> None:
    with psycopg.connect(make_conninfo(database_url, application_name="a deploy"), autocommit=True) as other:
        other.execute(lock.encode())
        expected = rf"a deploy \(process {other.info.backend_pid} on 127.0.0.1, since 2"
        with pytest.raises(MigrationBusy, match=expected), exclusive(database_url, seconds=0.1):
            pass
    with exclusive(database_url, seconds=10):
        pass


def test_runs_on_other_databases_are_not_waited_for(database_url: str, postgres: Postgres) -> None:
    with exclusive(database_url), exclusive(postgres_url(postgres.port, "postgres"), seconds=0.1):
        pass


@pytest.fixture
def altered(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection for changing the defaults of a login; they are restored afterwards."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        yield conn
        conn.execute("ALTER ROLE parlor_booking RESET ALL")
        migrate(database_url)


def defaults(conn: psycopg.Connection, role: str) -> dict[str, str]:
    """Return the defaults of a login by name in lower case."""
    found = conn.execute("SELECT unnest(rolconfig) FROM pg_roles WHERE rolname = %s", [role]).fetchall()
    return {name.lower(): value for name, _, value in (config.partition("=") for (config,) in found)}


@pytest.mark.parametrize("role", ["parlor_booking", "parlor_messaging", "parlor_stats"])
def test_logins_have_their_settings_by_default(database_url: str, role: str) -> None:
    with psycopg.connect(database_url) as conn:
        assert defaults(conn, role).items() >= {**ROLE_DEFAULTS, "search_path": "public"}.items()


def test_a_default_set_by_an_operator_is_kept(database_url: str, altered: psycopg.Connection) -> None:
    altered.execute("ALTER ROLE parlor_booking SET statement_timeout = '3s'")
    altered.execute("ALTER ROLE parlor_booking RESET lock_timeout")
    migrate(database_url)
    found = defaults(altered, "parlor_booking")
    assert (found["statement_timeout"], found["lock_timeout"]) == ("3s", "2s")
