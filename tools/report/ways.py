"""The two ways to read that are compared: the predecessor's, and that of the services."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr

from libs.cache import Cache, CacheSettings, Reply
from libs.db import Connection, Database, DatabaseSettings, QueryStats
from libs.server import Service
from ops.migrate import service_url
from services.booking.service import build as build_booking
from services.messaging.service import build as build_messaging
from services.messaging.settings import MessagingSettings
from services.namespaces import NAMESPACES
from services.stats.service import build as build_stats
from tools.report.cases import SALONS, Ask, Case
from tools.report.system import SLOW_MS, System, cores

POOL_TIMEOUT_SECONDS = 10.0  # of Prisma, if nobody sets it


class Counts(NamedTuple):
    """What a way counts as it goes on."""

    statements: int
    refused_fills: int
    exhaustions: int
    connection_errors: int

    def __sub__(self, earlier: "Counts") -> "Counts":
        """Return what came since."""
        return Counts(*(now - then for now, then in zip(self, earlier, strict=True)))


def _connection_errors(pool: AsyncConnectionPool[Any]) -> int:
    stats = pool.get_stats()
    return stats.get("connections_errors", 0) + stats.get("connections_lost", 0)


class Before:
    """The predecessor's way: no cache, one statement a value, none prepared, a pool that nobody has tuned.

    That is the size Prisma chooses itself: two connections a core and one more.
    """

    def __init__(self, database_url: str) -> None:
        """Prepare the pool; nothing connects before `open`."""
        self.queries = QueryStats(SLOW_MS / 1000)
        self.waits: list[float] = []
        size = 2 * cores() + 1
        self.pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            database_url,
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=size,
            max_size=size,
            timeout=POOL_TIMEOUT_SECONDS,
            open=False,
        )

    async def read(self, case: Case, ask: Ask) -> None:
        """Read all values, side by side."""
        if len(case.statements) == 1:
            await self._value(case.statements[0], ask)
        else:
            await asyncio.gather(*(self._value(statement, ask) for statement in case.statements))

    def counts(self) -> Counts:
        """Return what was counted."""
        exhaustions = self.pool.get_stats().get("requests_errors", 0)
        return Counts(self.queries.executed, 0, exhaustions, _connection_errors(self.pool))

    @property
    def connections(self) -> int:
        """The connections open."""
        return self.pool.get_stats()["pool_size"]

    @property
    def limit(self) -> int:
        """Most connections."""
        return self.pool.max_size

    async def _value(self, statement: str, ask: Ask) -> None:
        asked = time.perf_counter()
        async with self.pool.connection() as conn:
            sent = time.perf_counter()
            self.waits.append(sent - asked)
            cursor = await conn.execute(statement.encode(), ask.params)
            await cursor.fetchall()
            self.queries.add(time.perf_counter() - sent, statement)


class WatchedDatabase(Database):
    """A pool that adds how long each connection was waited for, in s, to `waits`."""

    def __init__(self, settings: DatabaseSettings, application_name: str, waits: list[float]) -> None:
        """Prepare the pool."""
        super().__init__(settings, application_name)
        self.waits = waits

    async def acquire(self) -> Connection:
        """Take a connection out of the pool."""
        asked = time.perf_counter()
        conn = await super().acquire()
        self.waits.append(time.perf_counter() - asked)
        return conn


class After:
    """The services' way: their own handlers, caches and pools, in this process."""

    def __init__(self) -> None:
        """Have no service yet."""
        self.services: dict[str, Service] = {}
        self.caches: dict[str, Cache] = {}
        self.databases: dict[str, Database] = {}
        self.waits: list[float] = []

    async def read(self, case: Case, ask: Ask) -> Reply:
        """Let the RPC's handler answer: what it takes is the time that the RPC spends on data."""
        reply: Reply = await getattr(self.services[case.service].servicer, case.method)(ask.request, None)
        return reply

    async def forget(self) -> None:
        """Invalidate all that is cached of all salons; the next reads are first reads."""
        await self.settle()
        tags = await asyncio.gather(*map(self.services["booking"].salon_tags, SALONS))
        await self.caches["booking"].invalidate(*(tag for of_salon in tags for tag in of_salon))

    async def settle(self) -> None:
        """Wait for the fills that are under way."""
        for cache in self.caches.values():
            await cache.settle()

    def counts(self) -> Counts:
        """Return what was counted, of all three."""
        databases = self.databases.values()
        return Counts(
            sum(database.queries.executed for database in databases),
            sum(cache.counters.refused_fills for cache in self.caches.values()),
            sum(database.exhaustions for database in databases),
            sum(_connection_errors(database.pool) for database in databases),
        )

    @property
    def connections(self) -> int:
        """The connections open."""
        return sum(database.pool.get_stats()["pool_size"] for database in self.databases.values())

    @property
    def limit(self) -> int:
        """Most connections."""
        return sum(database.settings.connection_limit for database in self.databases.values())

    async def start(self, system: System, stack: AsyncExitStack) -> None:
        """Connect everything; the stack disconnects it."""
        settings = MessagingSettings(
            booking_address=f"127.0.0.1:{system.ports.get('booking', 0)}", whatsapp_app_secret=SecretStr("report")
        )
        builds: dict[str, Callable[[Cache, Database], Service]] = {
            "booking": build_booking,
            "messaging": lambda cache, database: build_messaging(cache, database, settings),
            "stats": build_stats,
        }
        for name, build in builds.items():
            url = SecretStr(service_url(system.database_url, f"parlor_{name}"))
            limits = DatabaseSettings(url=url, slow_query_threshold=SLOW_MS)
            database = self.databases[name] = WatchedDatabase(limits, f"report-{name}", self.waits)
            cache = self.caches[name] = Cache(
                CacheSettings(url=system.redis_url, warm=0),  # a first read is one
                database.connection,
                bytes,
                NAMESPACES,
                read_only=name == "stats",
            )
            service = self.services[name] = build(cache, database)
            if service.close:
                stack.push_async_callback(service.close)
            stack.push_async_callback(database.close)
            await database.open()
            stack.push_async_callback(cache.close)
            await cache.open()


@asynccontextmanager
async def connected(system: System) -> AsyncIterator[tuple[Before, After, After]]:
    """Connect the two ways; the third is a process of its own to the second, and writes."""
    async with AsyncExitStack() as stack:
        before, after, writer = Before(system.copy_url), After(), After()
        await stack.enter_async_context(before.pool)
        await before.pool.wait()
        await after.start(system, stack)
        await writer.start(system, stack)
        yield before, after, writer
