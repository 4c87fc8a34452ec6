"""The embedded servers: sockets and passwords."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
import redis

from libs.db import split_pool_parameters
from ops.migrate import migrate, service_url
from ops.servers import LOGINS, PASSFILE, Postgres, Valkey, running_url
from tests.conftest import FAST


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, unlike tmp_path."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)  # PostgreSQL may have to run as nobody
        yield Path(name)


@pytest.mark.parametrize(("name", "by_socket"), [("% &?#", True), ("a,b", False), ("long" * 25, False)])
def test_servers_listen_on_sockets_unless_the_path_is_unsuitable(folder: Path, name: str, by_socket: bool) -> None:
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / name / "pg", settings=FAST))
        valkey = stack.enter_context(Valkey(data=folder / name))
        with psycopg.connect(postgres.dsn, autocommit=True) as owner:
            owner.execute("CREATE ROLE parlor_booking LOGIN")
        url, _ = split_pool_parameters(service_url(postgres.local_dsn, "parlor_booking"))
        with psycopg.connect(url) as conn:
            found = conn.execute("SELECT current_user, current_database(), inet_client_addr() IS NULL").fetchone()
        assert found == ("parlor_booking", "parlor", by_socket)
        assert valkey.socket.is_socket() == by_socket
        with redis.Redis.from_url(valkey.local_url) as client:
            assert client.ping()


def test_a_killed_postgres_starts_again_if_another_process_has_its_id(folder: Path) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
        Postgres(folder / "data", settings=FAST) as postgres,
    ):
        postgres.kill()
        lock = postgres.data / f".s.PGSQL.{postgres.port}.lock"
        for file in (postgres.data / "postmaster.pid", lock):
            file.write_text("\n".join([str(other.pid), *file.read_text().splitlines()[1:]]) + "\n")
        postgres.start()
        psycopg.connect(postgres.local_dsn).close()


def refused(url: str) -> str:
    """Return the error of a refused connection."""
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(url)
    return str(caught.value)


@pytest.mark.parametrize("name", ["pg", "long" * 25])
def test_a_secured_server_requires_a_password(folder: Path, name: str) -> None:
    with Postgres(folder / name, settings=FAST, secured=True) as postgres:
        for login in ("postgres", "parlor_booking"):
            assert "no password" in refused(f"postgresql://{login}@127.0.0.1:{postgres.port}/parlor")
            assert "password" in refused(f"postgresql://{login}:guess@127.0.0.1:{postgres.port}/parlor")
            socket = f"postgresql://{login}@/parlor?host={folder / name}&port={postgres.port}"
            refused(socket)
        migrate(postgres.dsn, postgres.passwords)
        for url in (postgres.dsn, postgres.local_dsn):
            for login in LOGINS:
                own, _ = split_pool_parameters(service_url(url, login))
                with psycopg.connect(own) as conn:
                    assert conn.execute("SELECT current_user").fetchone() == (login,)
        assert postgres.passfile is not None
        assert postgres.passfile.stat().st_mode & 0o777 == 0o600
        assert len(set(postgres.passwords.values())) == len(LOGINS)
        assert running_url(postgres.data) == postgres.dsn
        words = [*postgres.passwords.values(), "ALTER ROLE"]
        assert not [word for word in words if word in postgres.log.read_text()]


def test_an_existing_data_folder_gets_passwords(folder: Path) -> None:
    with Postgres(folder / "pg", settings={**FAST, "synchronous_commit": "on"}) as before:
        migrate(before.dsn)
        with psycopg.connect(before.dsn, autocommit=True) as owner:
            owner.execute("CREATE TABLE kept AS SELECT 7 AS number")
        before.kill()  # it must recover
    with Postgres(folder / "pg", settings=FAST, secured=True) as postgres:
        refused(f"postgresql://postgres@127.0.0.1:{postgres.port}/parlor")
        migrate(postgres.dsn, postgres.passwords)
        with psycopg.connect(postgres.dsn) as conn:
            assert conn.execute("SELECT number FROM kept").fetchone() == (7,)
        kept = postgres.passwords
        psycopg.connect(service_url(postgres.dsn, "parlor_stats")).close()
    with Postgres(folder / "pg", settings=FAST, secured=True) as postgres:
        assert postgres.passwords == kept
        psycopg.connect(service_url(postgres.local_dsn, "parlor_stats")).close()


def test_lost_passwords_are_generated_again(folder: Path) -> None:
    with Postgres(folder / "pg", settings=FAST, secured=True) as postgres:
        first = postgres.passwords
    (folder / "pg" / PASSFILE).unlink()
    with Postgres(folder / "pg", settings=FAST, secured=True) as postgres:
        assert postgres.passwords["postgres"] != first["postgres"]
        psycopg.connect(postgres.dsn).close()
