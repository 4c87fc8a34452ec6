"""PgBouncer in transaction mode, named in the settings or not; skipped where it is not installed."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from libs.db import Database, DatabaseSettings

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")


@pytest.fixture
def pooled_url(database_url: str, tmp_path: Path) -> Iterator[str]:
    """The database behind a PgBouncer that has two servers."""
    parts = urlsplit(database_url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "pgbouncer.ini"
    (tmp_path / "users.txt").write_text('"postgres" ""\n')
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={parts.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\nauth_file = {tmp_path}/users.txt\n"
        "pool_mode = transaction\ndefault_pool_size = 2\nignore_startup_parameters = extra_float_digits,options\n"
    )
    config.write_text(config.read_text().replace("* = ", "* = user=postgres "))
    tmp_path.chmod(0o755)
    command = [str(PROGRAM), str(config)]
    if Path("/proc/self").stat().st_uid == 0:  # it refuses to run as root
        command[1:1] = ["--user", "nobody"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            ends = time.monotonic() + 10
            while time.monotonic() < ends:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"postgresql://postgres@127.0.0.1:{port}{parts.path}"
        finally:
            process.terminate()


@pytest.mark.parametrize("pgbouncer", [False, True])
async def test_statements_of_two_processes_share_servers(pooled_url: str, pgbouncer: bool) -> None:
    settings = DatabaseSettings(url=SecretStr(pooled_url), connection_limit=6, pgbouncer=pgbouncer)
    pools = [Database(settings, f"test-{number}") for number in range(2)]
    for pool in pools:
        await pool.open()
        assert pool.available

    async def call(pool: Database, number: int) -> None:
        async with pool.connection() as conn:
            query = f"SELECT %s::int, {number % 7}"
            for _ in range(3):
                [(answer, _)] = await (await conn.execute(query.encode(), [number])).fetchall()
                assert answer == number
                _, [(looked_up,)] = await conn.look_up("SELECT $1::int", [number])
                assert looked_up == number

    try:
        await asyncio.gather(*(call(pool, number) for number in range(60) for pool in pools))
    finally:
        for pool in pools:
            await pool.close()
