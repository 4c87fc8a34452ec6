"""The embedded servers by their sockets."""

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
from ops.migrate import service_url
from ops.servers import Postgres, Valkey
from tests.conftest import FAST


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short, unlike that of tmp_path."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)  # PostgreSQL may have to run as nobody
        yield Path(name)


@pytest.mark.parametrize(("name", "by_socket"), [("% &?#", True), ("a,b", False), ("long" * 25, False)])
def test_servers_take_sockets_unless_their_paths_are_no_good(folder: Path, name: str, by_socket: bool) -> None:
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


def test_a_killed_postgres_starts_again_where_another_process_has_its_id(folder: Path) -> None:
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
