"""A pool of connections to the primary of a database.

Each host is probed twice a second (see hosts.py). While no primary answers, callers fail at once instead of waiting.
All connections go to the primary with the newest history: after a promotion, those to the old primary are closed at
once, even if it still answers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from libs.db.connection import Connection
from libs.db.history import History, OtherNumbering, check_numbering
from libs.db.hosts import ANSWER_SECONDS, PROBE_SECONDS, Host, newest, split_hosts
from libs.db.settings import DatabaseSettings
from libs.db.stats import QueryStats

WAITING_PER_CONNECTION = 50
# Settings of a session, and whether they are what the services rely on. A new plan for each value would cost more than
# the statement, and our plans do not depend on values (decision 0009).
LOGIN_DEFAULTS = """
    SELECT name, CASE name
        WHEN 'TimeZone' THEN setting IN ('UTC', 'Etc/UTC')
        WHEN 'plan_cache_mode' THEN setting = 'force_generic_plan'
        ELSE setting <> '0' END
    FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', 'TimeZone', 'plan_cache_mode')"""
# Parameters of connections that the URL may override.
CONNECTION_DEFAULTS = {"connect_timeout": 2, "keepalives_idle": 10, "tcp_user_timeout": 10_000}
# How long no call is answered after a promotion, until other processes have seen it, too. A process that still reads
# from an old primary, which hung and woke up, would not see what is written to the new one.
SETTLE_SECONDS = PROBE_SECONDS + 0.25
OVERDUE_SECONDS = 1.0  # a statement this long over its timeout runs on a server that hangs

OnChange = Callable[[bool], Awaitable[None]]

log = structlog.get_logger()


async def _ignore(_: bool) -> None:
    pass


def _timeouts(settings: DatabaseSettings) -> list[str]:
    """Return options of a connection for the timeouts that were set; the others are the login's defaults.

    PgBouncer refuses them.
    """
    if settings.pgbouncer:
        return []
    names = {"query_timeout": "statement_timeout", "lock_timeout": "lock_timeout"}
    return [f"-c{names[name]}={getattr(settings, name)}" for name in sorted(names.keys() & settings.model_fields_set)]


def conninfo(settings: DatabaseSettings, application_name: str) -> str:
    """Return the connection string of the settings' URL, with our defaults."""
    url = psycopg.conninfo.conninfo_to_dict(settings.url.get_secret_value())
    parameters: dict[str, Any] = {**CONNECTION_DEFAULTS, **url, "application_name": application_name}
    if options := " ".join(filter(None, [str(url.get("options") or ""), *_timeouts(settings)])):
        parameters["options"] = options
    return psycopg.conninfo.make_conninfo("", **parameters)


class DatabaseUnavailable(Exception):
    """No primary answers."""


class PoolExhausted(Exception):
    """No connection became free within the acquisition timeout, or too many callers wait already."""


class Database:
    """The pool of one process.

    `lost` counts the connections that an outage or a promotion ended. `history` is the line of history of its
    connections, None until there was a primary. Two attributes may be set before `open`: `canary` is the name of the
    table for `check_numbering`; `on_move` is called when the history has changed, before the first statement there.
    """

    def __init__(self, settings: DatabaseSettings, application_name: str) -> None:
        """Prepare the pool; nothing connects before `open`."""
        self.settings = settings
        self.queries = QueryStats(settings.slow_query_threshold / 1000)
        self.available = False
        self.exhaustions = 0
        self.lost = 0
        self.acquisitions = 0
        self.acquisition_seconds = 0.0
        self.history: History | None = None
        self.canary: str | None = None
        self.on_move: Callable[[], None] = lambda: None
        self._on_change: OnChange = _ignore
        self._host_changed = asyncio.Event()
        hosts = split_hosts(conninfo(settings, application_name))
        self._hosts = [Host(each, self._host_changed.set) for each in hosts]
        self._primary: Host | None = None
        self._connects = 0
        self._checked_history: History | None = None
        self._pooled = settings.pgbouncer
        self._checked_login = False
        self._connections: WeakSet[Connection] = WeakSet()
        self._spares: list[Connection] = []
        self._waiting: set[asyncio.Timeout] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self._conninfo_of_primary,
            connection_class=Connection,
            kwargs={"autocommit": True, "prepare_threshold": None},
            configure=self._configure,
            min_size=min(4, settings.connection_limit),
            max_size=settings.connection_limit,
            max_waiting=settings.connection_limit * WAITING_PER_CONNECTION,
            timeout=settings.pool_timeout,
            reconnect_timeout=1.0,
            open=False,
        )

    @property
    def primary_conninfo(self) -> str:
        """The connection string of the primary, without those of other hosts. Raises: DatabaseUnavailable."""
        if self._primary is None:
            raise DatabaseUnavailable
        return self._primary.conninfo

    def _conninfo_of_primary(self) -> str:
        try:
            return self.primary_conninfo
        except DatabaseUnavailable:
            raise psycopg.OperationalError("no host is the primary") from None

    async def _configure(self, conn: Connection) -> None:
        self._connections.add(conn)
        conn.queries = self.queries
        # Commits whose callers have left may wait for a standby on less than half of the pool.
        conn.endings, conn.most_endings = self._endings, max(1, self.settings.connection_limit // 2)
        conn.on_pooled = self._stop_preparing
        if await conn.read_history():
            self._stop_preparing()
        conn.most_prepared = 0 if self._pooled else self.settings.statement_cache_size
        if conn.history != self.history:
            for host in self._hosts:
                host.probe_now(reconnect=True)
            await conn.close()
            raise psycopg.OperationalError("the server has another history than the primary")
        conn.history = self.history
        if not self._checked_login:
            self._checked_login = True
            await self._check_login(conn)

    async def _check_login(self, conn: Connection) -> None:
        """Log which defaults of `parlor migrate` the login lacks. They are not SET: see decision 0059."""
        found = await (await conn.execute(LOGIN_DEFAULTS, prepare=False)).fetchall()
        if lacking := [name for name, as_expected in found if not as_expected]:
            log.warning("the login lacks defaults that `parlor migrate` sets for the services' logins", lacking=lacking)

    def _stop_preparing(self) -> None:
        if not self._pooled:
            self._pooled = True
            log.warning("a pooler shares the server with others: no statement is prepared any more; see pgbouncer=true")
            for conn in self._connections:
                conn.most_prepared = 0

    async def open(self, on_change: OnChange = _ignore) -> None:
        """Start the pool; return when every host has been probed.

        `on_change` is called with whether the database is available, at once and after each change.
        Raises: OtherNumbering if cached reads would be stale on this database.
        """
        self._on_change = on_change
        self._tasks = [asyncio.create_task(host.watch()) for host in self._hosts]
        for host in self._hosts:
            await host.probed.wait()
        if primary := newest(self._hosts, None, None):
            self._primary, self.history, self._connects = primary, primary.history, primary.connects
        await self.pool.open(wait=False)
        if self._primary:
            await self._check_numbering(self._primary)
        await self._set_available(self._primary is not None)
        self._tasks.append(asyncio.create_task(self._watch()))

    async def close(self) -> None:
        """Close all connections; the server completes the commits that still wait for a standby."""
        self.available = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._return_spares()
        if self._endings:
            for conn in self._connections:
                conn.hang_up()
            await asyncio.gather(*self._endings)
        await self.pool.close()

    def connection(self) -> "ConnectionLease":
        """Lend a connection in autocommit for an `async with`; an open transaction is rolled back at the end.

        Raises: DatabaseUnavailable, at once while no primary answers; PoolExhausted, after the acquisition timeout.
        """
        return ConnectionLease(self)

    async def acquire(self) -> Connection:
        """Take a connection out of the pool; `release` must follow. Raises: as `connection`."""
        if not self.available:
            raise DatabaseUnavailable
        if self._spares:
            self.acquisitions += 1
            return self._spares.pop()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(None) as wait:
                self._waiting.add(wait)
                conn = await self.pool.getconn()
        except PoolClosed as error:
            raise DatabaseUnavailable from error
        except (PoolTimeout, TooManyRequests) as error:
            self.exhaustions += 1
            raise PoolExhausted from error
        except TimeoutError as error:  # _set_available ended the wait
            raise DatabaseUnavailable from error
        finally:
            self._waiting.discard(wait)
        self.acquisitions += 1
        self.acquisition_seconds += time.perf_counter() - started
        return conn

    async def release(self, conn: Connection) -> None:
        """Give a connection back: to a list of spares unless a caller waits, which costs a tenth of psycopg's pool.

        Measured: 11 % less CPU for CreateBooking, at 8 and at 32 in flight, than with one spare connection.
        """
        if conn.ending is not None:
            task = asyncio.create_task(self._release_ended(conn, conn.ending))
            self._endings.add(task)
            task.add_done_callback(self._endings.discard)
            return
        status = conn.pgconn.transaction_status
        if (
            status == TransactionStatus.IDLE
            and self.available
            and not self._waiting
            and conn.history is self.history  # else psycopg's pool replaces it
        ):
            self._spares.append(conn)
            return
        try:
            if status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
                with suppress(psycopg.Error):  # the pool replaces what is broken
                    await conn.rollback()
        finally:
            if conn.broken:
                for host in self._hosts:
                    host.probe_now()
            await self.pool.putconn(conn)

    async def _release_ended(self, conn: Connection, ending: asyncio.Task[None]) -> None:
        """Give a connection back when its commit has been answered."""
        await asyncio.wait([ending])
        conn.ending = None
        await self.release(conn)

    @property
    def idle(self) -> int:
        """The number of open connections that are not in use."""
        return self.pool.get_stats()["pool_available"] + len(self._spares)

    async def _return_spares(self) -> None:
        spares, self._spares = self._spares, []
        for conn in spares:
            await self.pool.putconn(conn)

    async def _watch(self) -> None:
        """Choose the primary every half second, and at once after a host has changed."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):  # wait_for may swallow a cancellation on 3.11
                    await self._host_changed.wait()
            self._host_changed.clear()
            await self._return_spares()  # so that psycopg's pool closes those that are too old
            self._hang_up_overdue()
            primary = newest(self._hosts, self._primary, self.history)
            if primary is None:
                self._primary = None
                if self.available:
                    await self._set_available(False)
            elif primary is not self._primary or primary.history != self.history or primary.connects != self._connects:
                await self._move_to(primary)

    def _hang_up_overdue(self) -> None:
        """End statements that the server should have ended; a COMMIT only while no primary answers."""
        seconds = self.settings.query_timeout / 1000 + OVERDUE_SECONDS
        for conn in self._connections:
            if conn.is_overdue(seconds) and not (conn.committing and self.available):
                conn.hang_up()

    async def _move_to(self, primary: Host) -> None:
        """Replace all connections by new ones to a primary."""
        self._primary, self._connects = primary, primary.connects
        before, now = self.history, primary.history
        self.history = now and History(*now)  # a new object, so that `release` keeps no older connection
        self.lost += len(self._connections)
        if before and before != now:
            log.warning("database moved", before=before._asdict(), now=now and now._asdict())
            self.on_move()
            for conn in self._connections:
                conn.hang_up()
            if self.available:
                await self._set_available(False)
            await asyncio.sleep(SETTLE_SECONDS)
        try:
            await self._check_numbering(primary)
        except OtherNumbering as error:
            log.error("database refused", error=str(error))
            await self._set_available(False)
        else:
            await self._set_available(True)

    async def _check_numbering(self, primary: Host) -> None:
        """Check a history once. Raises: OtherNumbering."""
        if self.canary is None or self._checked_history == primary.history:
            return
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                await Connection.connect(primary.conninfo, autocommit=True, prepare_threshold=None) as conn,
            ):
                conn.queries = self.queries
                await check_numbering(conn, self.canary)
        except (psycopg.Error, OSError, TimeoutError) as error:  # for example, the schema does not exist yet
            log.warning("the check of the database's transaction numbers failed", error=str(error))
        else:
            self._checked_history = primary.history

    async def _set_available(self, available: bool) -> None:
        if available:
            await self.pool.drain()
            await self._return_spares()
        else:
            for wait in self._waiting:
                wait.reschedule(0)
        self.available = available
        problems = [host.problem for host in self._hosts if host.problem]
        log.info("database", available=available, **({"problems": problems} if problems else {}))
        await self._on_change(available)


@dataclass(slots=True)
class ConnectionLease:
    """A connection for the length of a block. A generator as context manager costs three times as much (measured)."""

    database: Database
    conn: Connection = field(init=False)

    async def __aenter__(self) -> Connection:
        """Acquire a connection."""
        self.conn = await self.database.acquire()
        return self.conn

    async def __aexit__(self, *error: object) -> None:
        """Release it."""
        await self.database.release(self.conn)
