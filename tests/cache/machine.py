"""Processes of a shop that stop before each command and statement, until a test lets that one go.

What runs is the library itself, on real servers: a step is whatever it does between two of these places.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus
from pydantic import SecretStr

from libs.cache import Cache, CacheSettings, Key, Tag
from libs.cache.codec import Entry, TagVersion
from libs.cache.resp import OnReply
from tests.cache import garbage
from tests.cache.shop import Loaded, Shop

T = TypeVar("T")

TICKS = 40  # of the event loop: more than lie between a reply and whatever it leads to
HELD_COMMANDS = ("MGET", "EVALSHA")
PARTS = ("tea", "milk")


class Killed(psycopg.OperationalError, ConnectionError):
    """What a process that was killed would never learn."""


class Row(NamedTuple):
    """A finished write: its name, where, and whether its tags are still pending."""

    name: str
    shelf: str
    pending: bool


class Shelves(Shop):
    """Shelves that writes add to; a reply holds the names of all. `s:tea` is a part of the shelf `s`."""

    def shelf(self, name: str = "a") -> Tag:
        """Return the tag of a shelf or of a part of one."""
        of, _, part = name.partition(":")
        return super().shelf(of).sub_tag("part", part) if part else super().shelf(of)

    def key(self, name: str = "", shelf: str = "a") -> Key:
        """Return the key of the only reply of a tag."""
        return self.shelf(shelf).key("all")

    async def select(self, conn: psycopg.AsyncConnection[Any], shelf: str, name: str) -> Loaded:
        """Read the rows and their xmin by one statement."""
        names = "(SELECT string_agg(name, ' ') FROM items WHERE starts_with(shelf, %s))"
        [row] = await (await conn.execute(f"SELECT {self.xmin}, {names}".encode(), (shelf,))).fetchall()
        return Loaded(*row)


class Connection(psycopg.AsyncConnection[Any]):
    """A connection that holds each statement of the process that has borrowed it."""

    process: "Process"

    async def execute(self, *args: Any, **kwargs: Any) -> psycopg.AsyncCursor[Any]:
        """Execute a statement."""
        await self.process.hold("statement")
        with self.process.world.working():
            return await super().execute(*args, **kwargs)

    async def commit(self) -> None:
        """Commit."""
        await self.process.hold("statement")
        with self.process.world.working():
            await super().commit()


class Process:
    """One process; `steps` are what it would do next, in the order in which it came to them."""

    def __init__(self, world: "World", *, free: bool = False) -> None:
        """Connect to nothing yet. What is `free` is not held."""
        self.world = world
        self.free = free
        self.dead = self.recovering = False
        self.steps: list[asyncio.Future[None]] = []
        self.passed: Counter[str] = Counter()
        self.cache = Cache(world.settings, self.connection, str.encode)
        self._reach, self._connect = self.cache.store.topology._connect, self.cache.store.connect
        self.cache.store.topology._connect = self._reach_held  # type: ignore[method-assign, assignment]
        self.cache.store.connect = self._connect_at_once  # type: ignore[method-assign]
        kind = type("Shop", (Shelves, world.variant), {})
        self.shop: Shop = kind(self.cache, cast(Any, self))

    @property
    def ready(self) -> bool:
        """Whether it serves hits."""
        return self.cache.store.ready

    def hold(self, what: str) -> "asyncio.Future[None]":
        """Return what ends when the process may go on, in an error if it is killed here."""
        step: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        step.add_done_callback(lambda step: None if step.exception() else self.passed.update([what]))
        if self.dead:
            step.set_exception(Killed())
        elif self.free:
            step.set_result(None)
        else:
            self.steps.append(step)
        return step

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection; what it has left open is rolled back, or lost with the process."""
        conn = await self.world.borrow()
        conn.process = self
        try:
            yield conn
        finally:
            if conn.info.transaction_status is TransactionStatus.IDLE:
                self.world.connections.append(conn)
            elif self.dead:
                await self.world.lose(conn)
            else:
                with self.world.working():
                    await conn.rollback()
                self.world.connections.append(conn)

    async def _reach_held(self, *args: Any) -> Any:
        connection = await self._reach(*args)
        connection.send = partial(self._send, connection.send)  # type: ignore[method-assign]
        return connection

    async def _connect_at_once(self) -> str:
        self.recovering = True
        try:
            with self.world.working():
                return await self._connect()
        finally:
            self.recovering = False

    def _send(self, send: Callable[..., None], on_reply: OnReply, *command: str | bytes | int) -> None:
        """Hold a command of a read or a write."""

        def go(step: "asyncio.Future[None]") -> None:
            if error := step.exception():
                on_reply(error)
            else:
                self.world.begins()
                send(reply, *command)

        def reply(answer: Any) -> None:
            self.world.ends()
            on_reply(answer)

        if command[0] not in HELD_COMMANDS or self.recovering:
            send(on_reply, *command)
            return
        if command[0] == "EVALSHA" and not self.free:
            self.world.captured.append(command)
        self.hold(str(command[0])).add_done_callback(go)

    def lose_valkey(self) -> None:
        """Lose the connections to Valkey."""
        for connection in set(self.cache.store._connections.values()):
            connection._lose(ConnectionError("lost"))

    async def kill(self) -> None:
        """End here: nothing that it was about to do is done, and Postgres rolls back."""
        self.dead = True
        for step in self.steps:
            step.set_exception(Killed())
        await self.world.quiet()
        with self.world.working():
            await self.cache.close()


class World:
    """The two servers, an event loop, and what outlives processes."""

    def __init__(self, dsn: str, redis_url: str, variant: type[Shop]) -> None:
        """Connect, and keep a process beside the others, to look and to send again what they have sent."""
        self.variant = variant
        self.settings = CacheSettings(
            url=redis_url, poll=60_000, warm=0, key=SecretStr("a key of the machine")
        ).model_copy(update={"timeout": 30_000})
        self.connections: list[Connection] = []
        self.captured: list[tuple[str | bytes | int, ...]] = []
        self._dsn = dsn
        self._working = self._worked = 0
        self._idle = asyncio.Event()
        self._runner = asyncio.Runner()
        self.beside = self.run(self._start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something, until nothing moves any more."""

        async def until_quiet() -> T:
            async with asyncio.timeout(60):
                result = await work
                await self.quiet()
                return result

        return self._runner.run(until_quiet())

    async def _start(self) -> Process:
        beside = Process(self, free=True)
        await beside.cache._recovery._recover()
        store = beside.cache.store
        for connection in set(store._connections.values()):
            for script in (store.open_script, store.register_script, store.fill_script):
                await connection.call("SCRIPT", "LOAD", script)
        return beside

    def close(self) -> None:
        """Disconnect."""

        async def close() -> None:
            await self.beside.cache.close()
            for conn in self.connections:
                await conn.close()

        self.run(close())
        self._runner.close()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Say that a server is being waited for."""
        self.begins()
        try:
            yield
        finally:
            self.ends()

    def begins(self) -> None:
        """Count a call to a server."""
        self._working += 1
        self._idle.clear()

    def ends(self) -> None:
        """Count the end of one."""
        self._worked += 1
        if self._worked == self._working:
            self._idle.set()

    async def quiet(self) -> None:
        """Return when every process waits to be let go on."""
        ticks = known = 0
        while ticks < TICKS:
            ticks, known = (ticks + 1 if known == self._working else 0), self._working
            if self._worked < self._working:
                await self._idle.wait()
            await asyncio.sleep(0)

    async def borrow(self) -> Connection:
        """Return a connection that nobody uses."""
        if self.connections:
            return self.connections.pop()
        with self.working():
            return await Connection.connect(self._dsn, autocommit=True)

    async def lose(self, conn: Connection) -> None:
        """End a connection without another word; its transaction has ended when this returns."""
        async with self.beside.connection() as other:
            await other.execute("SELECT pg_terminate_backend(%s, 5000)", (conn.info.backend_pid,))
        await conn.close()

    async def rows(self, shelf: str) -> list[Row]:
        """Return all finished writes to a shelf."""
        pending = "i.xmin::text::bigint IN (SELECT xact_id FROM cache_outbox)"
        query = f"SELECT name, shelf, {pending} FROM items AS i WHERE starts_with(shelf, %s)"
        async with self.beside.connection() as conn:
            return [Row(*row) for row in await (await conn.execute(query.encode(), (shelf,))).fetchall()]

    async def cached(self, shelves: list[str]) -> list[tuple[TagVersion | None, Entry | None]]:
        """Return what a reader of each would find now."""
        keys = [self.beside.shop.key("", name) for name in shelves]
        gets = await asyncio.gather(*map(self.beside.cache.store.get, keys))
        return [(found.tag_version(key), found.entry) for key, found in zip(keys, gets, strict=True)]

    async def remove(self, *keys: str) -> None:
        """Take keys of one shelf out of Valkey, as an eviction would."""
        store = self.beside.cache.store
        await store._connections[store._slot(keys[0])].call("DEL", *keys)

    async def write(self, key: str, kind: str, value: bytes) -> None:
        """Put any value under a key."""
        await self.remove(key)
        store = self.beside.cache.store
        reply = await store._connections[store._slot(key)].call(*garbage.command(key, kind, value))
        assert not isinstance(reply, Exception)

    async def value(self, key: str) -> bytes:
        """Return the string under a key, empty if there is none."""
        store = self.beside.cache.store
        [value] = await store._connections[store._slot(key)].call("MGET", key)
        return value or b""

    async def send_again(self, command: tuple[Any, ...]) -> None:
        """Send what a process has sent, or has begun to."""
        store = self.beside.cache.store
        await store._connections[store._slot(command[3])].call(*command)
