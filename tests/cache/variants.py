"""Tempting variants of the protocol, each without one of its steps. All of them are wrong."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from libs.cache import Cache, Read, Reply, Transaction, lease, scripts
from libs.cache.codec import Entry, TagVersion
from libs.cache.recovery import Recovery
from tests.cache.servers import reaching
from tests.cache.shop import Loaded, Shop, at_once, put


class CacheAside(Shop):
    """Delete the entry after the commit, store on a miss."""

    async def read(
        self,
        name: str = "tea",
        *,
        shelf: str = "a",
        before: Callable[[], Awaitable[None]] = at_once,
        after: Callable[[], Awaitable[None]] = at_once,
    ) -> Reply:
        """Return the entry; else load and store it."""
        key = self.key(name, shelf).entry
        with reaching(self.cache.settings.url) as client:
            body: bytes | None = client.get(key)
        if body is not None:
            return Reply(body, "hit", 0)
        await before()
        async with self.pool.connection() as conn:
            loaded = await self.select(conn, shelf, name)
        await after()
        body = str(loaded.value).encode()
        if await self.may_store(shelf):
            with reaching(self.cache.settings.url) as client:
                client.set(key, body)
        return Reply(body, "miss", 0)

    async def may_store(self, shelf: str) -> bool:
        """Always store."""
        return True

    async def write(self, label: str = "new", name: str = "tea", *, shelf: str = "a") -> None:
        """Write, commit, delete."""
        async with self.pool.connection() as conn:
            await put(conn, label, name, shelf)
        with reaching(self.cache.settings.url) as client:
            client.delete(self.key(name, shelf).entry)


class Fenced(CacheAside):
    """Before the write, delete the entry and set a fence: a key that keeps readers from storing for a minute."""

    async def may_store(self, shelf: str) -> bool:
        """Store only if there is no fence."""
        with reaching(self.cache.settings.url) as client:
            return not client.exists(f"query:fence:{shelf}")

    @asynccontextmanager
    async def writing(self, label: str = "new") -> AsyncIterator[Transaction]:
        """Set the fence, then write."""
        with reaching(self.cache.settings.url) as client:
            client.set("query:fence:a", 1, ex=60)
            client.delete(self.key().entry)
        async with self.cache.transaction() as write:
            await put(write.conn, label)
            yield write


class RegistersAfterCommit(Shop):
    """Register after the commit instead of before it."""

    async def write(self, label: str = "new", name: str = "tea", *, shelf: str = "a") -> None:
        """Commit, then register."""
        async with self.pool.connection() as conn:
            write = await Transaction.begin(conn, self.cache.store, ())
            await put(conn, label, name, shelf)
            await write.commit()
        write.invalidate(self.shelf(shelf))
        await write.registered()


class StampsAfterLoad(Shop):
    """Take the xmin in a second statement."""

    async def read(
        self,
        name: str = "tea",
        *,
        shelf: str = "a",
        before: Callable[[], Awaitable[None]] = at_once,
        after: Callable[[], Awaitable[None]] = at_once,
    ) -> Reply:
        """Load the row, then take the xmin."""

        async def load(conn: psycopg.AsyncConnection[Any]) -> Loaded:
            await before()
            row = await self.select(conn, shelf, name)
            await after()
            return Loaded((await self.select(conn, shelf, name)).xmin, row.value)

        return await self.cache.get(self.key(name, shelf), load)


def tracks_push_only(cache: Cache) -> None:
    """Keep replies in the process until the server pushes an invalidation, without a lease."""
    cache.store.near.lease = math.inf


class JoinsAnyLoad(Cache):
    """Singleflight by key."""

    async def _load(self, read: Read, record: TagVersion) -> Entry:
        for (entry, _), in_flight in self.loader._in_flight.items():
            if entry == read.key.entry:
                return await in_flight.wait()
        return await super()._load(read, record)


class JoinsByGeneration(Cache):
    """Singleflight by key and version, whether or not the load may be stored."""

    async def _load(self, read: Read, record: TagVersion) -> Entry:
        if in_flight := self.loader.in_flight(read.key, record):
            return await in_flight.wait()
        return await super()._load(read, record)


class DeletesFirst(Recovery):
    """Drains with DELETE ... RETURNING, then registers."""

    async def drain(self) -> None:
        """Delete the rows, then register them."""
        async with self._connect() as conn:
            if pending := await self._read_outbox(conn):
                await self._delete(conn, pending)
                await self._register(pending)


async def nothing(*_: Any) -> None:
    """Don't wait."""


def renews_from_the_answer(renew: Callable[..., None]) -> Callable[..., None]:
    """A lease that counts from the answer to the poll."""
    return lambda self, sent, pending: renew(self, lease.now(), pending)


def renews_for_all_groups(renew: Callable[..., None]) -> Callable[..., None]:
    """A lease that also covers pending tags."""
    return lambda self, sent, pending: renew(self, sent, ())


def checks_once_a_tick(covers: Callable[..., bool]) -> Callable[..., bool]:
    """A lease that is checked once for all reads of a tick of the event loop."""
    answers: list[bool] = []

    def check(self: lease.ReadLease, tag: str) -> bool:
        if not answers:
            answers.append(covers(self, tag))
            asyncio.get_running_loop().call_soon(answers.clear)
        return answers[0]

    return check


def without_stamp(shop: Shop) -> Shop:
    """Ignore the snapshot: use an xmin above all IDs."""
    shop.xmin = "2::bigint ^ 52"
    return shop


def lends(cache: Cache, conn: psycopg.AsyncConnection[Any]) -> None:
    """Load on the connection of a transaction that has written."""

    @asynccontextmanager
    async def lend() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        yield conn

    cache.loader.connect = lend


def takes_barriers_from_snapshots(cache: Cache) -> None:
    """A barrier that takes no transaction ID."""
    cache.loader.barrier_statement = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"


def opens_warm(cache: Cache) -> None:
    """Assume that a missing tag has no past."""
    _swap(cache, "open_script", scripts.OPEN.replace("'10'", "'00'"))


# How the script makes a version; the rest of the file reads records.
VERSIONS = scripts.OPEN[scripts.OPEN.index("local time = ") : scripts.OPEN.index("-- A record of another epoch")]


def counts_versions(cache: Cache) -> None:
    """Make versions with INCR."""
    counted = """
        local count = string.format('%013d', redis.call('INCR', KEYS[1] .. ':count'))
        local new_version = count .. string.sub(ARGV[1], 1, 8) .. '00000000'
    """
    for name, script in (("open_script", scripts.OPEN), ("register_script", scripts.REGISTER)):
        _swap(cache, name, script.replace(VERSIONS, counted))


def makes_versions_on_the_client(cache: Cache) -> None:
    """Take the version from the client, with the command."""
    made = "local new_version = '0000000000000' .. ARGV[1]\n"
    _swap(cache, "register_script", scripts.REGISTER.replace(VERSIONS, made))


def fills_any_version(cache: Cache) -> None:
    """Store a load under the current version, without comparing."""
    cache.store.fill_script = """
        local stored = {}
        for i = 1, #KEYS, 2 do
            local version, last = string.sub(redis.call('GET', KEYS[i]), 1, 29), (i + 1) / 2 * 6
            redis.call('SET', KEYS[i + 1], version .. ARGV[last], 'PX', ARGV[last - 1])
            stored[#stored + 1] = 1
        end
        return stored
    """


def _swap(cache: Cache, name: str, script: str) -> None:
    assert script not in (scripts.OPEN, scripts.REGISTER)
    setattr(cache.store, name, script)
