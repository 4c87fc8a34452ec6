"""A primary and a standby on this machine, and what happens to machines: killed, hung, promoted, replaced."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from ops.migrate import migrate
from ops.servers import Postgres, child_ids
from ops.standby import STANDBY, Standby

SETTINGS = {
    "max_connections": "100",
    "fsync": "off",
    "wal_keep_size": "64MB",
    "max_wal_senders": "4",
    "wal_retrieve_retry_interval": "100ms",
}
WAIT_SECONDS = 20


class Pair:
    """A primary, its standby, and the URL that names both; `settings` are those of both."""

    primary: Postgres
    standby: Standby

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """Start nothing yet."""
        self._settings = {**SETTINGS, **settings}
        self.primary = Postgres(folder / "primary", settings=self._settings)
        self.standby = Standby(folder / "standby", self.primary, self._settings)
        self.ports = self.primary.port, self.standby.port

    def url(self, *, attributes: str = "read-write") -> str:
        """Return the owner's URL with both hosts, the first primary first."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"postgresql://postgres@{hosts}/parlor?target_session_attrs={attributes}"

    def synchronize(self) -> None:
        """Have commits wait for the standby from now on; return when it is connected."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as conn:
            conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
            conn.execute("SELECT pg_reload_conf()")
        self.synchronized()

    def synchronized(self) -> None:
        """Return when the standby is connected and synchronous."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as conn:
            query = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"
            until(lambda: bool(conn.execute(query).rowcount))

    def caught_up(self) -> None:
        """Return when the standby has replayed all that the primary has written."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as conn:
            [(written,)] = conn.execute("SELECT pg_current_wal_lsn()::text").fetchall()
        with psycopg.connect(self.standby.dsn, autocommit=True) as conn:
            query = "SELECT coalesce(pg_last_wal_replay_lsn() >= %s::pg_lsn, true)"
            until(lambda: bool(conn.execute(query, [written]).fetchall()[0][0]))

    def swap(self) -> None:
        """Replace the old primary, after the standby was promoted, by a new standby of the new primary.

        It has the old one's port and folder, where nothing is kept. Raises: StartError.
        """
        old, self.primary = self.primary, self.standby
        old.kill()
        shutil.rmtree(old.data)
        self.standby = Standby(old.data, self.primary, self._settings, old.port)
        self.standby.start()
        self.synchronize()

    def stop(self) -> None:
        """Stop both, also those that hang."""
        for server in (self.standby, self.primary):
            if server.is_running:
                wake(server)
            server.stop()


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Raises: TimeoutError after 20 s."""
    ends = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.02)


def hang(server: Postgres) -> None:
    """Stop every process of a server: its port accepts connections, and nothing answers."""
    _signal(server, signal.SIGSTOP)


def wake(server: Postgres) -> None:
    """Let a server that hangs continue."""
    _signal(server, signal.SIGCONT)


def _signal(server: Postgres, number: int) -> None:
    for pid in (server.pid, *child_ids(server.pid)):
        with suppress(ProcessLookupError):  # a session that has just ended
            os.kill(pid, number)


@contextmanager
def pair(folder: Path, *, synchronous: bool = False, **settings: str) -> Iterator[Pair]:
    """Run a primary with the schema and its standby until the block ends, even if they were killed or hang."""
    both = Pair(folder, settings)
    try:
        both.primary.start()
        migrate(both.primary.dsn)
        both.standby.start()
        if synchronous:
            both.synchronize()
        both.caught_up()
        yield both
    finally:
        both.stop()
