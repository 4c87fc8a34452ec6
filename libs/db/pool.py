"""A pool of connections that knows whether its database is there.

While Postgres is away a caller fails at once instead of waiting for the pool. Each host is asked twice a second whether
it is the primary (see hosts.py). All connections go to the primary of the newest line of history: when another host is
promoted, those to the old one are closed at once, also if it still answers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from libs.db.canary import OtherNumbering, check_numbering
from libs.db.connection import Connection
from libs.db.history import History
from libs.db.hosts import ANSWER_SECONDS, PROBE_SECONDS, Host, newest, split_hosts
from libs.db.settings import DatabaseSettings
from libs.db.stats import QueryStats

WAITING_PER_CONNECTION = 50
# What the URL does not say.
CONNECTION_DEFAULTS = {"connect_timeout": 2, "keepalives_idle": 10, "tcp_user_timeout": 10_000}
# How long nothing is answered after a promotion, for other processes to see it, too: one that still reads from an old
# primary that hung and woke up would not see what is written to the new one.
SETTLE_SECONDS = PROBE_SECONDS + 0.25
OVERDUE_SECONDS = 1.0  # over its time, a statement that Postgres has not ended is on a server that hangs

OnChange = Callable[[bool], Awaitable[None]]

log = structlog.get_logger()


async def _ignore(_: bool) -> None:
    pass


class DatabaseUnavailable(Exception):
    """Postgres is away."""


class PoolExhausted(Exception):
    """No connection came free within the acquisition timeout, or too many wait already."""


class Database:
    """The pool of one process.

    `lost` counts the connections that an outage or a promotion ended. `history` is the line of history of its
    connections, None until there was a primary. Two attributes may be set before `open`. `canary` is the name of a
    table into which the login may insert, see canary.py. `on_move` is called when the line of history has changed,
    before the first statement on the new one.
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
        url = psycopg.conninfo.conninfo_to_dict(settings.url.get_secret_value())
        parameters: dict[str, Any] = {**CONNECTION_DEFAULTS, **url, "application_name": application_name}
        conninfo = psycopg.conninfo.make_conninfo("", **parameters)
        self._suspect = asyncio.Event()
        self._hosts = [Host(each, self._suspect.set) for each in split_hosts(conninfo)]
        self._primary: Host | None = None
        self._connects = 0
        self._numbered: History | None = None
        self._pooled = settings.pgbouncer
        self._connections: WeakSet[Connection] = WeakSet()
        self._spares: list[Connection] = []
        self._waiting: set[asyncio.Timeout] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self._conninfo_of_primary,
            connection_class=Connection,
            kwargs={"autocommit": True},
            configure=self._configure,
            min_size=min(4, settings.connection_limit),
            max_size=settings.connection_limit,
            max_waiting=settings.connection_limit * WAITING_PER_CONNECTION,
            timeout=settings.pool_timeout,
            reconnect_timeout=1.0,
            open=False,
        )

    def _conninfo_of_primary(self) -> str:
        if self._primary is None:
            raise psycopg.OperationalError("no host is the primary")
        return self._primary.conninfo

    async def _configure(self, conn: Connection) -> None:
        self._connections.add(conn)
        conn.queries = self.queries
        conn.may_begin = self._may_begin
        conn.on_pooled = self._stop_preparing
        conn.prepared_max = self.settings.statement_cache_size
        if await conn.read_history():
            self._stop_preparing()
        conn.prepare_threshold = 2 if self.settings.statement_cache_size and not self._pooled else None
        if conn.history != self.history:
            for host in self._hosts:
                host.ask_again(reconnect=True)
            await conn.close()
            raise psycopg.OperationalError("the server is on another line of history")
        conn.history = self.history
        if not self._pooled:  # else this would be said to another's session
            # Planning anew for each value costs more than the statement; our plans do not depend on values
            # (decision 0009).
            await conn.execute(
                f"SET statement_timeout = {self.settings.query_timeout};"
                f" SET lock_timeout = {self.settings.lock_timeout};"
                " SET timezone = 'UTC'; SET plan_cache_mode = force_generic_plan".encode(),
                prepare=False,
            )

    def _stop_preparing(self) -> None:
        if not self._pooled:
            self._pooled = True
            log.warning("a pooler lends the server to others: nothing is prepared any more; see pgbouncer=true")
            for conn in self._connections:
                conn.prepare_threshold = None

    def _may_begin(self) -> bool:
        """Say whether fewer commits than half the pool wait for a standby, their callers gone."""
        return len(self._endings) < max(1, self.settings.connection_limit // 2)

    async def open(self, on_change: OnChange = _ignore) -> None:
        """Start the pool; return when every host has been asked.

        `on_change` is told at once whether the database is there, and again whenever that changes.
        Raises: OtherNumbering if the cache can't be right on this database.
        """
        self._on_change = on_change
        self._tasks = [asyncio.create_task(host.watch()) for host in self._hosts]
        for host in self._hosts:
            await host.asked.wait()
        if primary := newest(self._hosts, None, None):
            self._primary, self.history, self._connects = primary, primary.history, primary.connects
        await self.pool.open(wait=False)
        if self._primary:
            await self._check_numbering(self._primary)
        await self._set_available(self._primary is not None)
        self._tasks.append(asyncio.create_task(self._watch()))

    async def close(self) -> None:
        """End the watch and the pool; a commit that still waits for a standby is left to the server."""
        self.available = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._give_spares_back()
        if self._endings:
            for conn in self._connections:
                conn.hang_up()
            await asyncio.gather(*self._endings)
        await self.pool.close()

    def connection(self) -> "Lease":
        """Lend a connection in autocommit for an `async with`; a transaction left open is rolled back.

        Raises: DatabaseUnavailable at once while Postgres is away; PoolExhausted after the acquisition timeout.
        """
        return Lease(self)

    async def acquire(self) -> Connection:
        """Take a connection out of the pool; `release` must follow."""
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
        except TimeoutError as error:  # the probe ended the wait
            raise DatabaseUnavailable from error
        finally:
            self._waiting.discard(wait)
        self.acquisitions += 1
        self.acquisition_seconds += time.perf_counter() - started
        return conn

    async def release(self, conn: Connection) -> None:
        """Give a connection back: to the next caller, unless one waits, at a tenth of what the way by the pool costs.

        Of several connections, too: with 8 and with 32 CreateBooking in flight 11 % less CPU than with one kept.
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
            and conn.history is self.history  # else the pool replaces it
        ):
            self._spares.append(conn)
            return
        try:
            if status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
                with suppress(psycopg.Error):  # the pool replaces what is broken
                    await conn.rollback()
        finally:
            if conn.broken:
                self._ask_again()
            await self.pool.putconn(conn)

    async def _release_ended(self, conn: Connection, ending: asyncio.Task[None]) -> None:
        """Give a connection back when its commit has been answered."""
        await asyncio.wait([ending])
        conn.ending = None
        await self.release(conn)

    @property
    def idle(self) -> int:
        """How many connections are open and not in use."""
        return self.pool.get_stats()["pool_available"] + len(self._spares)

    async def _give_spares_back(self) -> None:
        spares, self._spares = self._spares, []
        for conn in spares:
            await self.pool.putconn(conn)

    def _ask_again(self) -> None:
        for host in self._hosts:
            host.ask_again()

    async def _watch(self) -> None:
        """Look every half second, and at once when a host has changed, which one to use."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):  # wait_for may swallow a cancellation on 3.11
                    await self._suspect.wait()
            self._suspect.clear()
            await self._give_spares_back()  # for the pool to see how old they are
            self._hang_up_overdue()
            primary = newest(self._hosts, self._primary, self.history)
            if primary is None:
                self._primary = None
                if self.available:
                    await self._set_available(False)
            elif primary is not self._primary or primary.history != self.history or primary.connects != self._connects:
                await self._move_to(primary)

    def _hang_up_overdue(self) -> None:
        """End what the server should have ended long ago; a COMMIT only while the server does not answer either."""
        seconds = self.settings.query_timeout / 1000 + OVERDUE_SECONDS
        for conn in self._connections:
            if conn.is_overdue(seconds) and not (conn.committing and self.available):
                conn.hang_up()

    async def _move_to(self, primary: Host) -> None:
        """Have all connections replaced by new ones to a primary."""
        self._primary, self._connects = primary, primary.connects
        before, now = self.history, primary.history
        self.history = now and History(*now)  # another object: no older connection becomes a spare
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
        """Let the canary look at a line of history once. Raises: OtherNumbering."""
        if self.canary is None or self._numbered == primary.history:
            return
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                await Connection.connect(primary.conninfo, autocommit=True, prepare_threshold=None) as conn,
            ):
                conn.queries = self.queries
                await check_numbering(conn, self.canary)
        except (psycopg.Error, OSError, TimeoutError) as error:  # such as a schema that is not there yet
            log.warning("how the database numbers transactions can't be told", error=str(error))
        else:
            self._numbered = primary.history

    async def _set_available(self, available: bool) -> None:
        if available:
            await self.pool.drain()
            await self._give_spares_back()
        else:
            for wait in self._waiting:
                wait.reschedule(0)
        self.available = available
        problems = [host.problem for host in self._hosts if host.problem]
        log.info("database", available=available, **({"problems": problems} if problems else {}))
        await self._on_change(available)


class Lease:
    """A connection for the length of a block; a plain class, since a generator costs three times as much (measured)."""

    __slots__ = ("_conn", "_database")

    def __init__(self, database: Database) -> None:
        """Take nothing yet."""
        self._database = database

    async def __aenter__(self) -> Connection:
        """Take a connection."""
        self._conn = await self._database.acquire()
        return self._conn

    async def __aexit__(self, *error: object) -> None:
        """Give it back."""
        await self._database.release(self._conn)
