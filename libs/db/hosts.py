"""The hosts of a database, each asked twice a second whether it is the primary, and of which line of history.

A host that hangs keeps nobody waiting: each has a task and a connection of its own, which is closed when its time is
over, without asking that host to cancel anything.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from libs.db.connection import Connection
from libs.db.history import History
from libs.db.stats import QueryStats

PROBE_SECONDS = 0.5
ANSWER_SECONDS = 2.0

PER_HOST = ("host", "hostaddr", "port")
OF_ALL_HOSTS = ("target_session_attrs", "load_balance_hosts")


def split_hosts(conninfo: str) -> list[str]:
    """Return a connection string for each host of one, in their order; it says nothing about which to prefer."""
    parameters = {name: value for name, value in conninfo_to_dict(conninfo).items() if name not in OF_ALL_HOSTS}
    lists = {name: str(parameters.pop(name)).split(",") for name in PER_HOST if name in parameters}
    count = max([len(values) for name, values in lists.items() if name != "port"], default=1)
    return [
        make_conninfo(
            "", **parameters, **{name: values[place if len(values) > 1 else 0] for name, values in lists.items()}
        )
        for place in range(count)
    ]


class _Probe(Connection):
    """A connection that is closed instead of canceling its statement."""

    async def _cancel(self, gen: PQGen[object]) -> None:
        await self.close()


class Host:
    """One host. `history` is None while it is no primary or does not answer, for which `problem` is the reason.

    `connects` counts its connections: where the one before was lost, so probably were all others.
    """

    def __init__(self, conninfo: str, on_change: Callable[[], None]) -> None:
        """Prepare; nothing connects before `watch`. `on_change` is called after it has changed."""
        self.conninfo = conninfo
        self.history: History | None = None
        self.problem = ""
        self.connects = 0
        self.asked = asyncio.Event()
        self._on_change = on_change
        self._wake = asyncio.Event()
        self._conn: _Probe | None = None
        self._connect_seconds = max(ANSWER_SECONDS, timeout_from_conninfo(conninfo_to_dict(conninfo)))

    async def watch(self) -> None:
        """Ask for ever: every half second, and at once after `ask_again`."""
        try:
            while True:
                before = self.history, self.connects
                self.history = await self._ask()
                self.asked.set()
                if (self.history, self.connects) != before:
                    self._on_change()
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):  # wait_for may swallow a cancellation on 3.11
                        await self._wake.wait()
                self._wake.clear()
        finally:
            await self._close()

    def ask_again(self, *, reconnect: bool = False) -> None:
        """Ask at once; by a new connection where the host's name may mean another server by now."""
        if reconnect and self._conn is not None:
            self._conn.hang_up()
        self._wake.set()

    async def _ask(self) -> History | None:
        """Ask on the connection, or on a new one if that is dead."""
        if self._conn is not None:
            with suppress(psycopg.Error, OSError, TimeoutError):
                return await self._read(self._conn)
            await self._close()
        try:
            async with asyncio.timeout(self._connect_seconds):
                self._conn = await _Probe.connect(self.conninfo, autocommit=True)
            self.connects += 1
            self._conn.queries = QueryStats(threshold=float("inf"))
            return await self._read(self._conn)
        except (psycopg.Error, OSError, TimeoutError) as error:
            self.problem = str(error) or type(error).__name__
            await self._close()
            return None

    async def _read(self, conn: _Probe) -> History | None:
        async with asyncio.timeout(ANSWER_SECONDS):
            await conn.read_history()
        self.problem = "" if conn.history else "it is a standby"
        return conn.history

    async def _close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()


def newest(hosts: Sequence[Host], current: Host | None, since: History | None) -> Host | None:
    """Return the host whose line of history is the newest, `current` of several.

    It is of the same cluster as `since` if one is, and then not older.
    """
    found = {host: host.history for host in hosts if host.history}
    if since and (same := {host: history for host, history in found.items() if history.system == since.system}):
        found = {host: history for host, history in same.items() if history >= since}
    return max(found, key=lambda host: (found[host].timeline, host is current), default=None)
