"""The hosts of a database. Each is asked twice a second whether it is the primary, and for its history.

Each host has its own task and connection, so a host that hangs delays no other. When its time is up, the connection is
closed without a request to cancel.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from libs.db.connection import Connection
from libs.db.history import History
from libs.db.stats import QueryStats

PROBE_SECONDS = 0.5
ANSWER_SECONDS = 2.0

PER_HOST = ("host", "hostaddr", "port")
OF_ALL_HOSTS = ("target_session_attrs", "load_balance_hosts")


def split_hosts(conninfo: str) -> list[str]:
    """Return a connection string for each host of one, in their order, without preferences among them."""
    parameters = {name: value for name, value in conninfo_to_dict(conninfo).items() if name not in OF_ALL_HOSTS}
    lists = {name: str(parameters.pop(name)).split(",") for name in PER_HOST if name in parameters}
    count = max([len(values) for name, values in lists.items() if name != "port"], default=1)
    return [
        make_conninfo(
            "", **parameters, **{name: values[index if len(values) > 1 else 0] for name, values in lists.items()}
        )
        for index in range(count)
    ]


class Probe(Connection):
    """A connection that is closed instead of canceling its statement."""

    async def _cancel(self) -> None:
        await self.close()


class Host:
    """One host. `history` is None while it is not a primary or does not answer; `problem` says why.

    `connects` counts its connections: if the previous one was lost, all others to the host probably were, too.
    """

    def __init__(self, conninfo: str, on_change: Callable[[], None]) -> None:
        """Prepare; nothing connects before `watch`. `on_change` is called after a change of history or connects."""
        self.conninfo = conninfo
        self.history: History | None = None
        self.problem = ""
        self.connects = 0
        self.probed = asyncio.Event()
        self._on_change = on_change
        self._wake = asyncio.Event()
        self._conn: Probe | None = None
        self._connect_seconds = max(ANSWER_SECONDS, timeout_from_conninfo(conninfo_to_dict(conninfo)))

    async def watch(self) -> None:
        """Probe every half second, and at once after `probe_now`, until canceled."""
        try:
            while True:
                before = self.history, self.connects
                self.history = await self._probe()
                self.probed.set()
                if (self.history, self.connects) != before:
                    self._on_change()
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):  # wait_for may swallow a cancellation on 3.11
                        await self._wake.wait()
                self._wake.clear()
        finally:
            await self._close()

    def probe_now(self, *, reconnect: bool = False) -> None:
        """Probe at once; on a new connection if the host's name may have come to mean another server."""
        if reconnect and self._conn is not None:
            self._conn.hang_up()
        self._wake.set()

    async def _probe(self) -> History | None:
        """Read the history on the connection, or on a new one if it is dead."""
        if self._conn is not None:
            with suppress(psycopg.Error, OSError, TimeoutError):
                return await self._read(self._conn)
            await self._close()
        try:
            async with asyncio.timeout(self._connect_seconds):
                self._conn = await Probe.connect(self.conninfo, autocommit=True)
            self.connects += 1
            self._conn.queries = QueryStats(threshold=float("inf"))
            return await self._read(self._conn)
        except (psycopg.Error, OSError, TimeoutError) as error:
            self.problem = str(error) or type(error).__name__
            await self._close()
            return None

    async def _read(self, conn: Probe) -> History | None:
        async with asyncio.timeout(ANSWER_SECONDS):
            await conn.read_history()
        self.problem = "" if conn.history else "it is a standby"
        return conn.history

    async def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()


def newest(hosts: Sequence[Host], current: Host | None, since: History | None) -> Host | None:
    """Return the primary with the newest history; among equals, `current`.

    If a host has the cluster of `since`, it is one of that cluster's hosts, and its history is not older.
    """
    primaries = {host: host.history for host in hosts if host.history}
    if since and (same := {host: history for host, history in primaries.items() if history.system == since.system}):
        primaries = {host: history for host, history in same.items() if history >= since}
    return max(primaries, key=lambda host: (primaries[host].timeline, host is current), default=None)
