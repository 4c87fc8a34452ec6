"""Processes of a shop that stop before each command and statement, until a test releases it.

The library itself runs, on real servers: a step is everything it does between two of these stops.
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

TICKS = 40  # of the event loop: more than pass between a reply and its consequences
HELD_COMMANDS = ("MGET", "EVALSHA")
PARTS = ("tea", "milk")


class Killed(psycopg.OperationalError, ConnectionError):
    """Raised in a killed process at its next step."""


class Row(NamedTuple):
    """A finished write: its name, where, and whether its tags are still pending."""

    name: str
    shelf: str
    pending: bool


class Shelves(Shop):
    """Shelves that writes add to; a reply lists the names. `s:tea` is a sub-tag of the shelf `s`."""

    def shelf(self, name: str = "a") -> Tag:
        """Return the tag of a shelf, or a sub-tag of it."""
        of, _, part = name.partition(":")
        return super().shelf(of).sub_tag("part", part) if part else super().shelf(of)

    def key(self, name: str = "", shelf: str = "a") -> Key:
        """Return the key of the only reply of a tag."""
        return self.shelf(shelf).key("all")

    async def select(self, conn: psycopg.AsyncConnection[Any], shelf: str, name: str) -> Loaded:
        """Read the rows and their xmin with one statement."""
        names = "(SELECT string_agg(name, ' ') FROM items WHERE starts_with(shelf, %s))"
        [row] = await (await conn.execute(f"SELECT {self.xmin}, {names}".encode(), (shelf,))).fetchall()
        return Loaded(*row)


class Connection(psycopg.AsyncConnection[Any]):
    """A connection that holds each statement of the process that borrowed it."""

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
    """One process; `steps` are its held steps, oldest first."""

    def __init__(self, world: "World", *, free: bool = False) -> None:
        """Don't connect yet. The steps of a `free` process are not held."""
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
        """Return whether it serves hits."""
        return self.cache.store.ready

    def hold(self, what: str) -> "asyncio.Future[None]":
        """Return a future that is done when the process may go on, with an error if it is killed here."""
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
        """Lend a connection; an open transaction is rolled back, or lost with the process."""
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
        """Kill the process: its held steps never happen, and Postgres rolls back."""
        self.dead = True
        for step in self.steps:
            step.set_exception(Killed())
        await self.world.quiet()
        with self.world.working():
            await self.cache.close()


class World:
    """The two servers, an event loop, and the state that outlives processes."""

    def __init__(self, dsn: str, redis_url: str, variant: type[Shop]) -> None:
        """Connect, and start one more process, which inspects the servers and replays commands."""
        self.variant = variant
        self.settings = CacheSettings(
            url=redis_url, poll=60_000, refill=0, key=SecretStr("a key of the machine")
        ).model_copy(update={"timeout": 30_000})
        self.connections: list[Connection] = []
        self.captured: list[tuple[str | bytes | int, ...]] = []
        self._dsn = dsn
        self._working = self._worked = 0
        self._idle = asyncio.Event()
        self._runner = asyncio.Runner()
        self.beside = self.run(self._start())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something until all processes are held or idle."""

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
        """Return a context in which a call to a server is counted as running."""
        self.begins()
        try:
            yield
        finally:
            self.ends()

    def begins(self) -> None:
        """Count the start of a call to a server."""
        self._working += 1
        self._idle.clear()

    def ends(self) -> None:
        """Count the end of a call to a server."""
        self._worked += 1
        if self._worked == self._working:
            self._idle.set()

    async def quiet(self) -> None:
        """Wait until every process is held or idle."""
        ticks = known = 0
        while ticks < TICKS:
            ticks, known = (ticks + 1 if known == self._working else 0), self._working
            if self._worked < self._working:
                await self._idle.wait()
            await asyncio.sleep(0)

    async def borrow(self) -> Connection:
        """Return an unused connection."""
        if self.connections:
            return self.connections.pop()
        with self.working():
            return await Connection.connect(self._dsn, autocommit=True)

    async def lose(self, conn: Connection) -> None:
        """Terminate a connection; its transaction has ended when this returns."""
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
        """Return the entry that a reader of each would hit now."""
        keys = [self.beside.shop.key("", name) for name in shelves]
        gets = await asyncio.gather(*map(self.beside.cache.store.get, keys))
        return [(found.tag_version(key), found.entry) for key, found in zip(keys, gets, strict=True)]

    async def remove(self, *keys: str) -> None:
        """Remove keys of one shelf from Valkey, as an eviction would."""
        store = self.beside.cache.store
        await store._connections[store._slot(keys[0])].call("DEL", *keys)

    async def write(self, key: str, kind: str, value: bytes) -> None:
        """Write any value to a key."""
        await self.remove(key)
        store = self.beside.cache.store
        reply = await store._connections[store._slot(key)].call(*garbage.command(key, kind, value))
        assert not isinstance(reply, Exception)

    async def value(self, key: str) -> bytes:
        """Return the string value of a key, empty if there is none."""
        store = self.beside.cache.store
        [value] = await store._connections[store._slot(key)].call("MGET", key)
        return value or b""

    async def send_again(self, command: tuple[Any, ...]) -> None:
        """Send a command of a process again."""
        store = self.beside.cache.store
        await store._connections[store._slot(command[3])].call(*command)
