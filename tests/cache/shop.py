"""A service other than Parlor's: items on shelves. A reply is the text of an item; each shelf is a tag."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from psycopg_pool import AsyncConnectionPool

from libs.cache import Cache, CacheSettings, Key, Reply, Tag, Transaction
from services.namespaces import NAMESPACES
from tests.cache.servers import each
from tests.conftest import PASSWORD, USER

SCHEMA = "CREATE TABLE items (shelf text, name text, label text NOT NULL, PRIMARY KEY (shelf, name))"
RESET = "DELETE FROM items; INSERT INTO items VALUES ('a', 'tea', 'old')"
NOTHING_IN_FORCE = "UPDATE cache_in_force SET epoch = '', servers = '', history = '', settled = true"
SNAPSHOT_XMIN = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"


class Loaded(NamedTuple):
    """The result of a load."""

    xmin: int
    value: str | None


class Pause:
    """A point where a task waits until the test releases it."""

    def __init__(self) -> None:
        """Begin without waiting tasks."""
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self) -> None:
        """Wait here."""
        self.reached.set()
        await self.go_on.wait()


async def at_once() -> None:
    """Do not pause."""


@dataclass
class Shop:
    """One process of the service. `loads` records its statements; `xmin` is the column with their snapshot xmin."""

    cache: Cache
    pool: AsyncConnectionPool
    xmin: str = SNAPSHOT_XMIN
    loads: list[str] = field(default_factory=list)

    def shelf(self, name: str = "a") -> Tag:
        """Return the tag of a shelf."""
        return self.cache.namespace("shop").tag(name, "shelf:")

    def key(self, name: str = "tea", shelf: str = "a") -> Key:
        """Return the key of an item."""
        return self.shelf(shelf).key(name)

    async def read(
        self,
        name: str = "tea",
        *,
        shelf: str = "a",
        before: Callable[[], Awaitable[None]] = at_once,
        after: Callable[[], Awaitable[None]] = at_once,
    ) -> Reply:
        """Read an item; its load awaits `before` and `after` around its statement."""

        async def load(conn: psycopg.AsyncConnection[Any]) -> Loaded:
            await before()
            self.loads.append(name)
            loaded = await self.select(conn, shelf, name)
            await after()
            return loaded

        return await self.cache.get(self.key(name, shelf), load)

    async def select(self, conn: psycopg.AsyncConnection[Any], shelf: str, name: str) -> Loaded:
        """Read the row and its xmin with one statement."""
        query = f"SELECT {self.xmin}, (SELECT label FROM items WHERE shelf = %s AND name = %s)"
        [row] = await (await conn.execute(query.encode(), (shelf, name))).fetchall()
        return Loaded(*row)

    async def read_together(self, name: str, *, shelf: str = "a") -> Reply:
        """Read an item with the statement that is shared by all reads of the same tick."""
        return await self.cache.get_batched(self.key(name, shelf), (shelf, name), self.select_many)

    async def select_many(
        self, conn: psycopg.AsyncConnection[Any], wanted: Sequence[tuple[str, str]]
    ) -> Sequence[Loaded]:
        """Read many rows with one statement."""
        self.loads.append("many")
        query = (
            f"SELECT {self.xmin}, label FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS w (shelf, name, n)"
            " LEFT JOIN items USING (shelf, name) ORDER BY n"
        )
        columns = [list(column) for column in zip(*wanted, strict=True)]
        return [Loaded(*row) for row in await (await conn.execute(query.encode(), columns)).fetchall()]

    async def text(self, name: str = "tea", *, shelf: str = "a") -> str | None:
        """Return the reply to a read, once all fills under way have ended."""
        await self.cache.settle()
        body = (await self.read(name, shelf=shelf)).body
        await self.cache.settle()
        return None if body is None else body.decode()

    async def write(self, label: str = "new", name: str = "tea", *, shelf: str = "a") -> None:
        """Write an item, and answer."""
        async with self.cache.transaction(self.shelf(shelf)) as write:
            await put(write.conn, label, name, shelf)

    @asynccontextmanager
    async def writing(self, label: str = "new") -> AsyncIterator[Transaction]:
        """Write the item and register the write; the end of the block commits."""
        async with self.cache.transaction(self.shelf()) as write:
            await put(write.conn, label)
            await write.registered()
            yield write


class Start:
    """Starts processes; they end with the test.

    `timeout` is that of a call to Valkey, in ms; the default is so long that a busy machine does not look like an
    outage.
    """

    def __init__(self, exits: AsyncExitStack, pool: AsyncConnectionPool, redis_url: str, timeout: int = 10_000) -> None:
        """Close the processes with `exits`."""
        self._timeout = timeout
        self.exits = exits
        self.pool = pool
        self.redis_url = redis_url

    async def __call__(
        self,
        kind: type[Cache] = Cache,
        *,
        redis_url: str = "",
        xmin: str = SNAPSHOT_XMIN,
        read_only: bool = False,
        wait: bool = True,
        prepare: Callable[[Cache], None] = lambda cache: None,
        **settings: Any,
    ) -> Shop:
        """Return a process that uses Valkey, or `redis_url`; `wait` until it does.

        It connects as the user with the least rights, unless the URL names another.
        It polls the outbox once a minute, so that tests decide when it does, and loads nothing ahead.
        """
        url = as_user(redis_url or self.redis_url)
        values = CacheSettings(**{"poll": 60_000, "refill": 0, "url": url, **settings})
        values = values.model_copy(update={"timeout": self._timeout})
        cache = kind(values, self.pool.connection, str.encode, NAMESPACES, read_only=read_only)
        prepare(cache)
        self.exits.push_async_callback(cache.close)
        await cache.open()
        if wait and not redis_url:
            await until(lambda: cache.store.ready)
        return Shop(cache, self.pool, xmin)


def as_user(url: str) -> str:
    """Return a URL with the user of the cache, if it has none."""
    scheme, _, rest = url.partition("://")
    return url if "@" in rest else f"{scheme}://{USER}:{PASSWORD}@{rest}"


async def put(conn: psycopg.AsyncConnection[Any], label: str, name: str = "tea", shelf: str = "a") -> None:
    """Write an item's row."""
    await conn.execute(
        "INSERT INTO items VALUES (%s, %s, %s) ON CONFLICT (shelf, name) DO UPDATE SET label = excluded.label",
        (shelf, name, label),
    )


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition is true, for 10 s at most."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)


def lose(redis_url: str, pattern: str = "query:*") -> None:
    """Remove keys from Valkey, as an eviction or a flush would."""
    for client in each(redis_url):
        for key in client.scan_iter(pattern):
            client.delete(key)
