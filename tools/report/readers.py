"""The two ways to read that are compared: the predecessor's, and the services' handlers, in this process."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import Message
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr

from libs.cache import Cache, CacheSettings, CacheUnavailable, Reply
from libs.db import Database, DatabaseSettings
from libs.server import Service
from ops.migrate import service_url
from services.booking.service import build as build_booking
from services.messaging.service import build as build_messaging
from services.messaging.settings import MessagingSettings
from services.namespaces import NAMESPACES
from services.stats.service import build as build_stats
from tools.report.cases import SALONS, Case, Request
from tools.report.system import System

T = TypeVar("T")
CALLERS = 32
POOL_TIMEOUT_SECONDS = 10.0  # Prisma's default
SETTLE_SECONDS = 30.0


async def timed(
    call: Callable[[T], Awaitable[object]], requests: Iterable[T], seconds: float = 1e9, callers: int = CALLERS
) -> list[float]:
    """Have callers share the calls, for up to `seconds`. Return the duration of each call, in s."""
    waiting, taken = iter(requests), list[float]()
    end = time.perf_counter() + seconds

    async def caller() -> None:
        for request in waiting:
            started = time.perf_counter()
            await call(request)
            taken.append(time.perf_counter() - started)
            if started > end:
                return

    await asyncio.gather(*(caller() for _ in range(callers)))
    return taken


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Before:
    """The predecessor's way: no cache, one statement per value, none prepared, and a pool of Prisma's default size."""

    def __init__(self, database_url: str) -> None:
        """Prepare the pool: two connections per core and one more."""
        self.statements = 0
        self.limit = 2 * cores() + 1
        self.pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            database_url,
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=self.limit,
            max_size=self.limit,
            timeout=POOL_TIMEOUT_SECONDS,
            open=False,
        )

    async def read(self, case: Case, request: Request) -> None:
        """Read all values in parallel."""
        if len(case.statements) == 1:  # without the cost of a task
            await self._execute(case.statements[0], request.params)
        else:
            await asyncio.gather(*(self._execute(statement, request.params) for statement in case.statements))

    async def _execute(self, statement: str, params: dict[str, Any]) -> None:
        self.statements += 1
        async with self.pool.connection() as conn:
            cursor = await conn.execute(statement.encode(), params)
            await cursor.fetchall()


class After:
    """The services' way: their handlers, caches and pools, in this process."""

    def __init__(self) -> None:
        """Have no services yet."""
        self.services: dict[str, Service] = {}
        self.caches: dict[str, Cache] = {}
        self.databases: dict[str, Database] = {}

    async def read(self, service: str, method: str, request: Message) -> Reply:
        """Call the RPC's handler. Its duration is the time that the RPC spends on data."""
        reply: Reply = await getattr(self.services[service].servicer, method)(request, None)
        return reply

    async def forget(self) -> None:
        """Invalidate everything that is cached, so that the next reads are first reads. Raises: TimeoutError."""
        tags = await asyncio.gather(*map(self.services["booking"].salon_tags, SALONS))
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                await self.settle()
                with suppress(CacheUnavailable):
                    await self.caches["booking"].invalidate(*(tag for of_salon in tags for tag in of_salon))
                    return

    async def settle(self) -> None:
        """Wait for the fills under way, and for Redis, which a busy machine loses for moments. Raises: TimeoutError."""
        async with asyncio.timeout(SETTLE_SECONDS):
            for cache in self.caches.values():
                await cache.settle()
                while not cache.store.ready:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.01)

    @property
    def statements(self) -> int:
        """The statements sent so far."""
        return sum(database.queries.executed for database in self.databases.values())

    async def start(self, system: System, stack: AsyncExitStack) -> None:
        """Connect; the stack disconnects."""
        settings = MessagingSettings(
            booking_address=f"127.0.0.1:{system.ports['booking']}", whatsapp_app_secret=SecretStr("report")
        )
        builds: dict[str, Callable[[Cache, Database], Service]] = {
            "booking": build_booking,
            "messaging": partial(build_messaging, settings=settings),
            "stats": build_stats,
        }
        for name, build in builds.items():
            url = SecretStr(service_url(system.database_url, f"parlor_{name}"))
            database = self.databases[name] = Database(DatabaseSettings(url=url), f"report-{name}")
            cache = self.caches[name] = Cache(
                CacheSettings(url=system.redis_url, refill=0),  # so that a first read is a miss
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
async def connected(system: System) -> AsyncIterator[tuple[Before, After]]:
    """Connect both ways."""
    async with AsyncExitStack() as stack:
        before, after = Before(system.copy_url), After()
        await stack.enter_async_context(before.pool)
        await before.pool.wait()
        await after.start(system, stack)
        yield before, after
