"""Reads that may come from the cache, and transactions that invalidate it: never stale, whatever dies when.

The rule, in short. A transaction registers its id with every group it writes to before it commits, which gives the
group a new generation. An entry counts only under the generation it was stored under, and is stored only if the
snapshot that it was read by shows that every registered transaction had ended by then. Nothing follows the commit, so
there is nothing that a killed process could leave undone. docs/decisions/0003 says why each step is needed.
"""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import psycopg
from redis.exceptions import RedisError

from libs.cache.ahead import WARMING, Ask, Warmer, is_due
from libs.cache.entries import Entry, Fill, Meta
from libs.cache.gather import Gather
from libs.cache.keys import Group, Key, Namespace
from libs.cache.reply import MAX_AGE, Reply, Stamped
from libs.cache.settings import CacheSettings, WithoutRedis
from libs.cache.statistics import Counters
from libs.cache.store import Store, StoreAway
from libs.cache.transaction import Transaction
from libs.cache.watch import Watch

Connect = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]
LoadMany = Callable[[psycopg.AsyncConnection[Any], Sequence[Any]], Awaitable[Sequence[Stamped[Any]]]]


class CacheUnavailable(Exception):
    """An invalidation can't reach Redis, and the settings say to refuse then."""


class _Flight(NamedTuple):
    """What a load found, and whether every transaction registered with its generation had ended before it looked."""

    entry: Entry
    may_be_stored: bool


class Cache:
    """Cached reads and guarded transactions of one process.

    `connect` lends connections in autocommit to the primary; `encode` makes the bytes of a loaded value. A process that
    may only read (`read_only`) registers pending groups but leaves their rows to others.
    """

    def __init__(
        self, settings: CacheSettings, connect: Connect, encode: Callable[[Any], bytes], *, read_only: bool = False
    ) -> None:
        """Prepare the cache; nothing connects before `open`."""
        self.settings = settings
        self.counters = Counters()
        self._gather = Gather()
        self.store = Store(settings, self._gather)
        self._connect = connect
        self._encode = encode
        waits = settings.without is WithoutRedis.WAIT
        self._watch = Watch(self.store, connect, settings.poll / 1000, deletes=not read_only, leases=waits)
        self.warmer = Warmer(settings.warm, self.counters, self._gone, self._warm)
        self._flights: dict[tuple[str, bytes], asyncio.Future[_Flight]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect if the server is there; from now on keep watch over it."""
        await self._watch.open()
        self.warmer.open()

    async def close(self) -> None:
        """Stop the watch, let loads and fills end, and disconnect."""
        await self.warmer.close()
        await self._watch.close()
        await self.settle()
        await self._gather.close()
        await self.store.close()

    async def settle(self) -> None:
        """Wait for the loads and fills that are under way now."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def namespace(self, name: str) -> Namespace:
        """Return a namespace with the TTL in force."""
        return self.settings.namespace(name)

    # Reads

    async def read(self, key: Key, load: Callable[[psycopg.AsyncConnection[Any]], Awaitable[Stamped[Any]]]) -> Reply:
        """Return the reply of `key`; on a miss `load` reads it by one statement, once for all who ask meanwhile."""

        async def run(_: Sequence[None]) -> list[Stamped[Any]]:
            async with self._connect() as conn:
                return [await load(conn)]

        return await self._read(key, lambda behind=False: self._gather.ask((key.entry, behind), None, run))

    async def look_up(self, key: Key, argument: Hashable, load: LoadMany) -> Reply:
        """Return the reply of `key`; on a miss `load` reads it together with all that is looked up in the same tick.

        `load` gets the arguments and returns as many results, in their order, of one statement. It must be the same
        function at each call: a bound method or a module's function, no lambda.
        """

        async def run(arguments: Sequence[Any]) -> Sequence[Stamped[Any]]:
            async with self._connect() as conn:
                return await load(conn, arguments)

        return await self._read(key, lambda behind=False: self._gather.ask((load, behind), argument, run))

    def near(self, key: Key) -> Reply | None:
        """Return the reply of `key` if this process has seen it within the near cache's lease."""
        if (entry := self.store.near.get(key)) is None:
            return None
        self.counters.hits += 1
        self.counters.near += 1
        return Reply(entry.body, "near", max(0, _now_ms() - entry.loaded_ms), key)

    async def look_up_many(self, keys: Sequence[Key], arguments: Sequence[Any], load: LoadMany) -> list[Reply]:
        """Return the replies of different keys, as `look_up` does: one MGET, and one load of all that is missing.

        It has no task a key, which would cost more than all the rest: so it joins no load under way, and a caller that
        goes away ends it.
        """
        max_age = MAX_AGE.get()
        if max_age == 0 or not all(map(self._may_hit, keys)):
            return await self._bypass_many(arguments, load)
        try:
            looks = await self.store.look_many(keys)
            replies = [self._hit(entry, max_age) for _, entry in looks]
            missed = [place for place, reply in enumerate(replies) if reply is None]
            unknown = [place for place in missed if looks[place].meta is None]
            opened = await asyncio.gather(*(self.store.open(keys[place].group.meta) for place in unknown))
        except StoreAway:
            return await self._bypass_many(arguments, load)
        if missed:
            self.counters.misses += len(missed)
            known = dict(zip(unknown, opened, strict=True))
            metas = [(keys[place], looks[place].meta or known[place]) for place in missed]
            loaded = await self._load_many(metas, [arguments[place] for place in missed], load)
            for place, reply in zip(missed, loaded, strict=True):
                replies[place] = reply
        return [reply for reply in replies if reply is not None]

    async def _load_many(
        self, metas: Sequence[tuple[Key, Meta]], arguments: Sequence[Any], load: LoadMany
    ) -> list[Reply]:
        """Load by one statement, and store what may be stored behind the replies."""
        cold = any(meta.cold for _, meta in metas)
        barrier = await self._gather.ask("barrier", None, self._barrier) if cold else 0
        loaded_ms = _now_ms()
        async with self._connect() as conn:
            loaded = await load(conn, arguments)
        fills = []
        for (key, meta), one in zip(metas, loaded, strict=True):
            entry = self._entry(one, loaded_ms)
            fills.append(Fill(key, meta.generation, one.stamp, barrier, self._ttl_ms(key, entry), entry))
        self._spawn(self._fill_many(fills))
        return [Reply(fill.entry.body, "miss", 0) for fill in fills]

    async def _fill_many(self, fills: Sequence[Fill]) -> None:
        with suppress(StoreAway):
            stored = sum(await self.store.fill_many(fills))
            self.counters.sets += stored
            self.counters.refused_fills += len(fills) - stored

    async def _bypass_many(self, arguments: Sequence[Any], load: LoadMany) -> list[Reply]:
        self.counters.bypasses += len(arguments)
        async with self._connect() as conn:
            loaded = await load(conn, arguments)
        return [Reply(self._entry(one, 0).body, "bypass", 0) for one in loaded]

    async def peek(self, key: Key) -> Reply | None:
        """Return the reply of `key` if it is cached, None if it is not, or Redis is away; load nothing."""
        if self._may_hit(key):
            with suppress(StoreAway):
                return (await self._look(key, None))[1]
        return None

    async def _read(self, key: Key, ask: Ask) -> Reply:
        if WARMING.get():
            return await self._warm(key, ask)
        max_age = MAX_AGE.get()
        if key.group.namespace.near and max_age is None and (reply := self.near(key)) is not None:
            return reply
        if max_age == 0 or not self._may_hit(key):
            return await self._bypass(ask)
        try:
            meta, reply = await self._look(key, max_age)
            if meta is not None and reply is not None:
                if key.entry in self.warmer.unasked:
                    self.warmer.hit(key)
                if key.group.namespace.refresh < 1 and is_due(key, reply):
                    self._refresh(key, meta, ask)
                return reply._replace(key=key) if key.group.namespace.near else reply
            if meta is None:
                meta = await self.store.open(key.group.meta)
        except StoreAway:
            return await self._bypass(ask)
        self.counters.misses += 1
        self.warmer.missed(key, ask)
        return Reply(await self._load(key, meta, ask), "miss", 0)

    def _may_hit(self, key: Key) -> bool:
        """Say whether a read that begins now may look at what is cached. Ask anew for each, just before it looks."""
        return self.store.ready and (self._watch.lease is None or self._watch.lease.covers(key.group.meta))

    async def _look(self, key: Key, max_age: int | None) -> tuple[Meta | None, Reply | None]:
        """Return the meta of a key's group, and its reply if it is cached and not too old. Raises: StoreAway."""
        meta, entry = await self.store.look(key)
        return meta, self._hit(entry, max_age)

    def _hit(self, entry: Entry | None, max_age: int | None) -> Reply | None:
        if entry is not None:
            age_ms = max(0, _now_ms() - entry.loaded_ms)
            if max_age is None or age_ms <= max_age * 1000:
                self.counters.hits += 1
                return Reply(entry.body, "hit", age_ms)
        return None

    async def _bypass(self, ask: Ask) -> Reply:
        self.counters.bypasses += 1
        return Reply(self._entry(await ask(), 0).body, "bypass", 0)

    def _entry(self, loaded: Stamped[Any], loaded_ms: int) -> Entry:
        return Entry(None if loaded.value is None else self._encode(loaded.value), loaded_ms)

    async def _load(self, key: Key, meta: Meta, ask: Ask) -> bytes | None:
        """Load, or join a load under way that cannot be older than any write the caller must see.

        A load under way under the caller's own generation is such a one if it may be stored: all that was registered
        had then ended before it looked.
        """
        running = self._flights.get((key.entry, meta.generation))
        if running is not None:
            joined: _Flight = await asyncio.shield(running)
            if joined.may_be_stored:
                return joined.entry.body
        found: _Flight = await asyncio.shield(self._take_off(key, meta, ask))
        return found.entry.body

    def _refresh(self, key: Key, meta: Meta, ask: Ask) -> None:
        """Load behind a reply, unless a load is under way; it is stored only under the generation that was hit."""
        if (key.entry, meta.generation) not in self._flights:
            self.counters.refreshes += 1
            self._take_off(key, meta, partial(ask, True))

    async def _gone(self, keys: Sequence[Key]) -> list[bool]:
        """Say of each key whether it is not cached; False where this can't be told now. Raises: StoreAway."""
        if not all(map(self._may_hit, keys)):
            return [False] * len(keys)
        return [found.entry is None for found in await asyncio.gather(*map(self.store.look, keys))]

    async def _warm(self, key: Key, ask: Ask) -> Reply:
        """Return a reply that no caller waits for, and keep it. Raises: StoreAway; what the load raises."""
        meta, entry = await self.store.look(key)
        if entry is not None:
            return Reply(entry.body, "hit", 0)
        meta = meta or await self.store.open(key.group.meta)
        flight = self._flights.get((key.entry, meta.generation))
        found: _Flight = await asyncio.shield(flight or self._take_off(key, meta, partial(ask, True)))
        if flight is None:
            self.warmer.warmed(key, ask, stored=found.may_be_stored)
        return Reply(found.entry.body, "miss", 0)

    def _take_off(self, key: Key, meta: Meta, ask: Ask) -> "asyncio.Future[_Flight]":
        flight = self._flights[key.entry, meta.generation] = asyncio.get_running_loop().create_future()
        self._spawn(self._fly(key, meta, ask, flight))
        return flight

    async def _fly(self, key: Key, meta: Meta, ask: Ask, flight: "asyncio.Future[_Flight]") -> None:
        """Load, hand the entry to all who wait, and store it behind their replies."""
        try:
            fill, may_be_stored = await self._found(key, meta, ask)
            flight.set_result(_Flight(fill.entry, may_be_stored))
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # seen, even if no caller waits any more
        else:
            with suppress(StoreAway):
                if may_be_stored and await self.store.fill(fill):
                    self.counters.sets += 1
                else:
                    self.counters.refused_fills += 1
        finally:
            flight.cancel()  # only if this task was cancelled
            if self._flights.get((key.entry, meta.generation)) is flight:
                del self._flights[key.entry, meta.generation]

    async def _found(self, key: Key, meta: Meta, ask: Ask) -> tuple[Fill, bool]:
        """Load; return what a FILL needs, and whether all that was registered had ended before the load looked."""
        barrier = await self._gather.ask("barrier", None, self._barrier) if meta.cold else 0
        loaded_ms = _now_ms()
        loaded = await ask()
        entry = self._entry(loaded, loaded_ms)
        fill = Fill(key, meta.generation, loaded.stamp, barrier, self._ttl_ms(key, entry), entry)
        return fill, loaded.stamp > max(meta.highest, barrier)

    async def _barrier(self, keys: Sequence[None]) -> list[int]:
        """Return an id above that of every transaction whose registration may have been lost."""
        async with self._connect() as conn:
            cursor = await conn.execute("SELECT pg_current_xact_id()::text::bigint")
            return [row[0] for row in await cursor.fetchall()]

    def _ttl_ms(self, key: Key, entry: Entry) -> int:
        """Return the lifetime of an entry: up to a tenth shorter, so that what was stored together ends apart."""
        ttl = key.group.namespace.ttl
        if entry.body is None:
            ttl = min(ttl, self.settings.ttl_negative)
        return int(ttl * 1000 * random.uniform(0.9, 1))  # noqa: S311

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Writes

    @asynccontextmanager
    async def transaction(self, *groups: Group, locks: Sequence[int] = ()) -> AsyncIterator[Transaction]:
        """Run the block as a transaction that invalidates `groups`; it commits at the end, and rolls back on an error.

        The transaction is registered beside the block's statements. `locks` are advisory locks, taken in this order
        before anything else and held until the end.
        Raises: CacheUnavailable (settings `refuse`); CommitUnknown; what the block and `connect` raise; psycopg.Error,
        also if the block left the transaction failed or ended it.
        """
        if self.settings.without is WithoutRedis.REFUSE and not self.store.connected:
            raise CacheUnavailable
        async with self._connect() as conn:
            write = await Transaction.begin(conn, self.store, locks)
            try:
                write.invalidate(*groups)
                yield write
                await self._register(write)
            finally:
                write.forget()
            await write.commit()
        self.counters.invalidations += len(write.metas)
        if write.pending:
            await self._pending_seen(write)

    async def _pending_seen(self, write: Transaction) -> None:
        """Register a committed transaction if Redis is back; else wait, if the settings say so, until all see it.

        Redis may be back, and this process serving hits, since before the rows could be seen.
        """
        try:
            await write.register_again()
        except StoreAway:
            await self._watch.seen([(meta, write.xact_id) for meta in write.metas])

    async def all_seen(self) -> None:
        """Return when every read that begins from then on shows what was committed before by any process.

        At once but with the setting `wait`, for replies to writes that others have done and perhaps not answered yet.
        Raises: what `connect` raises; psycopg.Error.
        """
        await self._watch.all_seen()

    async def _register(self, write: Transaction) -> None:
        """Wait until the transaction is registered; else leave it pending, or refuse it, as the settings say."""
        try:
            await write.registered()
        except StoreAway as error:
            if self.settings.without is WithoutRedis.REFUSE:
                raise CacheUnavailable from error
            await write.leave_pending()

    # By hand

    async def invalidate(self, *groups: Group) -> int:
        """Invalidate groups, and their parts, whose rows were changed by other means, after the commit.

        Return how many there were. Raises: CacheUnavailable.
        """
        try:
            await asyncio.gather(*(self.store.register(group.meta, 0) for group in groups))
            parts = await self.store.servers.unlink_parts(groups)
        except (StoreAway, RedisError, OSError) as error:
            raise CacheUnavailable from error
        invalidated = len(groups) + parts
        self.counters.invalidations += invalidated
        return invalidated

    async def erase(self, *groups: Group) -> None:
        """Remove what is kept of groups, after the commit that invalidated them; the rest ends by its TTL."""
        with suppress(RedisError, OSError):
            for group in groups:
                await self.store.servers.unlink_entries(group)

    async def invalidate_pattern(self, pattern: str) -> int:
        """Invalidate every group that a key matching the glob pattern could be in; return how many there were.

        A load under way may be about to store a key that is not there yet, so the groups are told from the pattern's
        text before its first wildcard: more than needed, never less. Raises: CacheUnavailable.
        """
        literal = re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]
        try:
            invalidated = await self.store.servers.unlink_metas(literal)
            self.store.near.clear()
        except (RedisError, OSError) as error:
            raise CacheUnavailable from error
        self.counters.invalidations += invalidated
        return invalidated

    async def invalidate_namespace(self, namespace: Namespace) -> int:
        """Invalidate every group of a namespace; return how many there were. Raises: CacheUnavailable."""
        return await self.invalidate_pattern(namespace.prefix + "*")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
