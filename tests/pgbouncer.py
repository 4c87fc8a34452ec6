"""A PgBouncer in transaction mode, if there is one; PGBOUNCER_BIN names another program.

`make .venv/bin/pgbouncer` takes that of Debian's package.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from ops.process import Server, spawn
from ops.servers import LOGINS, Postgres

PROGRAM = (
    os.environ.get("PGBOUNCER_BIN")
    or shutil.which("pgbouncer", path=Path(sys.executable).parent)
    or shutil.which("pgbouncer")
    or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
)
PREPARES = (1, 21)  # the first version that supports prepared statements
SETTINGS = """
[databases]
* = host=127.0.0.1 port={server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {servers}
max_client_conn = 500
{more}
"""


class PgBouncer(Server):
    """A pooler of a Postgres, with `servers` connections shared in transaction mode."""

    stop_signal = signal.SIGINT

    def __init__(self, folder: Path, postgres: Postgres, servers: int, more: str) -> None:
        """Don't start it yet."""
        super().__init__("PgBouncer", None, folder / "pgbouncer.log")
        self.folder, self.postgres, self.servers, self.more = folder, postgres, servers, more

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it."""
        users, settings = self.folder / "users", self.folder / "pgbouncer.ini"
        users.write_text("".join(f'"{login}" ""\n' for login in LOGINS))
        values = {"server": self.postgres.port, "port": self.port, "users": users, "servers": self.servers}
        settings.write_text(SETTINGS.format(**values, more=self.more))
        return spawn([PROGRAM or "pgbouncer", str(settings)], self.log, self.stop_signal, self.folder)

    def is_ready(self) -> bool:
        """Return whether a session can be opened."""
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        """Return the owner's URL of a database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"


def version() -> tuple[int, ...]:
    """Return the program's version; () if there is none."""
    if PROGRAM is None:
        return ()
    output = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
    return tuple(int(part) for part in output.split()[1].split(".")[:2])


@contextmanager
def pgbouncer(folder: Path, postgres: Postgres, servers: int = 3, more: str = "") -> Iterator[PgBouncer]:
    """Run a PgBouncer until the block ends; `more` are lines of its settings."""
    with PgBouncer(folder, postgres, servers, more) as server:
        yield server
