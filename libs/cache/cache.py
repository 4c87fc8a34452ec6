"""Reads that may come from the cache, and transactions that invalidate it: never stale, whatever dies when.

The rule, in short. A transaction registers its id with every tag it writes to before it commits, which gives the
tag a new generation. An entry counts only under the generation it was stored under, and is stored only if the
snapshot that it was read by shows that every registered transaction had ended by then. Nothing follows the commit, so
there is nothing that a killed process could leave undone. docs/decisions/0003 says why each step is needed.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import psycopg
from redis.exceptions import RedisError

from libs.cache import keyspace
from libs.cache.batcher import Batcher
from libs.cache.codec import Entry, Found, Meta, now_ms
from libs.cache.epoch import NotInForceError
from libs.cache.keys import Key, Namespace, Tag
from libs.cache.loader import InFlightLoad, Loader
from libs.cache.recovery import Recovery
from libs.cache.refresh_ahead import WARMING, Warmer, is_due
from libs.cache.reply import MAX_AGE, Connect, LoadMany, LoadOne, LoadResult, Read, Reply
from libs.cache.settings import CacheSettings, WithoutRedis
from libs.cache.statistics import Counters
from libs.cache.store import Store, StoreAway
from libs.cache.transaction import Begin, Commit, Transaction, plain_commit


class CacheUnavailable(Exception):
    """An invalidation can't reach Redis, and the settings say to refuse then."""


class Cache:
    """Cached reads and guarded transactions of one process.

    `connect` lends connections in autocommit to the primary; `encode` makes the bytes of a loaded value. A process that
    may only read (`read_only`) registers pending tags but leaves their rows to others.
    """

    def __init__(
        self, settings: CacheSettings, connect: Connect, encode: Callable[[Any], bytes], *, read_only: bool = False
    ) -> None:
        """Prepare the cache; nothing connects before `open`."""
        self.settings = settings
        self.counters = Counters()
        self._batcher = Batcher()
        self.store = Store(settings, self._batcher)
        self._connect = connect
        self.loader = Loader(self.store, self._batcher, self.counters, connect, encode, settings.ttl_negative)
        leases = settings.without is WithoutRedis.WAIT
        self._watch = Recovery(self.store, connect, settings.poll / 1000, deletes=not read_only, leases=leases)
        self.warmer = Warmer(settings.warm, self.counters, self._gone, self._warm)

    async def open(self) -> None:
        """Connect if the server is there; from now on keep watch over it."""
        await self._watch.open()
        self.warmer.open()

    async def close(self) -> None:
        """Stop the watch, let loads and fills end, and disconnect."""
        await self.warmer.close()
        await self._watch.close()
        await self.settle()
        await self._batcher.close()
        await self.store.close()

    async def settle(self) -> None:
        """Wait for the loads and fills that are under way now."""
        await self.loader.settle()

    def namespace(self, name: str) -> Namespace:
        """Return a namespace with the TTL in force."""
        return self.settings.namespace(name)

    # Reads

    async def get(
        self,
        key: Key,
        load: Callable[[psycopg.AsyncConnection[Any]], Awaitable[LoadResult[Any]]],
        *,
        connect: Connect | None = None,
        repeatable: bool = False,
    ) -> Reply:
        """Return the reply of `key`; on a miss `load` reads it alone, once for all who ask for the key meanwhile.

        `connect` lends the connection for that, instead of the cache's. `repeatable` says that key and load follow
        from the request's bytes alone.
        """
        return await self.resolve(Read(key, None, LoadOne(key.entry, load, connect), repeatable=repeatable))

    async def get_batched(
        self,
        key: Key,
        argument: Hashable,
        load: LoadMany,
        *,
        batch: Callable[[Any], Hashable] | None = None,
        rows: int = 1,
        repeatable: bool = False,
    ) -> Reply:
        """Return the reply of `key`; on a miss `load` reads it together with all that is looked up in the same tick.

        `load` gets the arguments and returns as many results, in their order, of one statement. A result whose value is
        an error is raised to the callers of that argument alone, and is not cached. `load` must be the same function at
        each call: a bound method or a module's function, no lambda. `batch`, if it is given, makes a batch key of an
        argument: only arguments with the same key are loaded together. `rows` is how many rows the load reads for this
        argument at most, an estimate: a batch has MOST_ROWS in all, or one argument. `repeatable` is as in `get`.
        """
        return await self.resolve(Read(key, argument, load, batch, rows, repeatable))

    def near(self, key: Key) -> Reply | None:
        """Return the reply of `key` if this process has seen it within the near cache's lease."""
        if (entry := self.store.near.get(key)) is None:
            return None
        self.counters.hits += 1
        self.counters.near += 1
        return Reply(entry.body, "near", max(0, now_ms() - entry.loaded_ms))

    async def get_many(self, keys: Sequence[Key], arguments: Sequence[Hashable], load: LoadMany) -> list[Reply]:
        """Return the replies of different keys, as `get_batched` does: one MGET, and one load of all that is missing.

        It has no task a key, which would cost more than all the rest, and joins no load that has not landed.
        """
        max_age = MAX_AGE.get()
        if not self.loader.unstored.isdisjoint([key.entry for key in keys]):
            await self.loader.store_now()
        if max_age == 0 or not all(map(self._may_hit, keys)):
            return await self._bypass(_reads(keys, arguments, load))
        try:
            looks = await self.store.look_many(keys)
            replies = [self._hit(found.entry, max_age) for found in looks]
            missed = [place for place, reply in enumerate(replies) if reply is None]
            known = {place: looks[place].meta(keys[place]) for place in missed}
            unknown = [place for place in missed if known[place] is None]
            opened = await asyncio.gather(*(self.store.open(keys[place].tag.meta) for place in unknown))
        except StoreAway:
            return await self._bypass(_reads(keys, arguments, load))
        self.counters.misses += len(missed)
        metas = dict(zip(unknown, opened, strict=True))
        reads = _reads([keys[at] for at in missed], [arguments[at] for at in missed], load)
        in_flight_loads = [
            self._join_or_start(read, known[at] or metas[at]) for at, read in zip(missed, reads, strict=True)
        ]
        for place, in_flight in zip(missed, in_flight_loads, strict=True):
            replies[place] = Reply((await in_flight.wait()).body, "miss", 0)
        return [reply for reply in replies if reply is not None]

    async def _bypass(self, reads: Sequence[Read]) -> list[Reply]:
        """Load past the cache."""
        self.counters.bypasses += len(reads)
        in_flight_loads = [self.loader.start(read, None) for read in reads]
        return [Reply((await in_flight.wait()).body, "bypass", 0) for in_flight in in_flight_loads]

    async def peek(self, key: Key) -> Reply | None:
        """Return the reply of `key` if it is cached, None if it is not, or Redis is away; load nothing."""
        if self._may_hit(key):
            with suppress(StoreAway):
                return self._hit((await self.store.look(key)).entry, None)
        return None

    async def resolve(self, read: Read) -> Reply:
        """Return the reply to a read, such as one that a reply has named to be done `again`."""
        if WARMING.get():
            return await self._warm(read)
        key, again, max_age = read.key, read if read.repeatable else None, MAX_AGE.get()
        if key.tag.namespace.near and max_age is None and (reply := self.near(key)) is not None:
            return reply._replace(again=again)
        if key.entry in self.loader.unstored:
            await self.loader.store_now()
        if max_age == 0 or not self._may_hit(key):
            return (await self._bypass([read]))[0]
        try:
            found = await self.store.look(key)
            if (reply := self._hit(found.entry, max_age, again)) is not None:
                if key.entry in self.warmer.unasked:
                    self.warmer.hit(key)
                if key.tag.namespace.refresh < 1 and is_due(key, reply):
                    self._refresh(read, found.meta(key))
                return reply
            meta = await self._meta(key, found)
        except StoreAway:
            return (await self._bypass([read]))[0]
        self.counters.misses += 1
        self.warmer.missed(read)
        return Reply((await self._load(read, meta)).body, "miss", 0, again)

    def _may_hit(self, key: Key) -> bool:
        """Say whether a read that begins now may look at what is cached. Ask anew for each, just before it looks."""
        return self.store.ready and (self._watch.lease is None or self._watch.lease.covers(key.tag.meta))

    def _hit(self, entry: Entry | None, max_age: int | None, again: Read | None = None) -> Reply | None:
        """Return the reply that an entry is, if it is not too old."""
        if entry is not None:
            age_ms = max(0, now_ms() - entry.loaded_ms)
            if max_age is None or age_ms <= max_age * 1000:
                self.counters.hits += 1
                return Reply(entry.body, "hit", age_ms, again)
        return None

    async def _meta(self, key: Key, found: Found) -> Meta:
        """Return the meta that a look found, or open the tag. Raises: StoreAway."""
        return found.meta(key) or await self.store.open(key.tag.meta)

    async def _load(self, read: Read, meta: Meta) -> Entry:
        """Load, or join a load under way that cannot be older than any write the caller must see.

        A load under way under the caller's own generation is such a one if it may be stored: all that was registered
        had then ended before it looked.
        """
        if (running := self.loader.under_way(read.key, meta)) is not None:
            entry = await running.wait()
            if running.may_be_stored:
                return entry
        return await self.loader.start(read, meta).wait()

    def _join_or_start(self, read: Read, meta: Meta) -> InFlightLoad:
        """Return a load that is about to be stored, else start one."""
        running = self.loader.under_way(read.key, meta)
        return running if running is not None and running.may_be_stored else self.loader.start(read, meta)

    def _refresh(self, read: Read, meta: Meta | None) -> None:
        """Load behind a reply, unless a load is under way; it is stored only under the generation that was hit."""
        if meta is not None and self.loader.under_way(read.key, meta) is None:
            self.counters.refreshes += 1
            self.loader.start(read, meta, behind=True)

    async def _gone(self, keys: Sequence[Key]) -> list[bool]:
        """Say of each key whether it is not cached; False where this can't be told now. Raises: StoreAway."""
        if not all(map(self._may_hit, keys)):
            return [False] * len(keys)
        return [found.entry is None for found in await asyncio.gather(*map(self.store.look, keys))]

    async def _warm(self, read: Read) -> Reply:
        """Return a reply that no caller waits for, and keep it. Raises: StoreAway; what the load raises."""
        found = await self.store.look(read.key)
        if found.entry is not None:
            return Reply(found.entry.body, "hit", 0)
        meta = await self._meta(read.key, found)
        running = self.loader.under_way(read.key, meta)
        in_flight = running or self.loader.start(read, meta, behind=True)
        entry = await in_flight.wait()
        if running is None:
            self.warmer.warmed(read, stored=in_flight.may_be_stored)
        return Reply(entry.body, "miss", 0)

    # Writes

    @asynccontextmanager
    async def transaction(
        self,
        *tags: Tag,
        locks: Sequence[int] = (),
        lease: AbstractAsyncContextManager[psycopg.AsyncConnection[Any]] | None = None,
        begin: Begin | None = None,
        commit: Commit = plain_commit,
    ) -> AsyncIterator[Transaction]:
        """Run the block as a transaction that invalidates `tags`; it commits at the end, and rolls back on an error.

        The transaction is registered beside the block's statements. `locks` are advisory locks, taken in this order
        before anything else and held until the end. `lease` lends the connection instead of `connect`. `begin` and
        `commit` are for callers that send more in those round trips; `begin` takes the locks, then.
        Raises: CacheUnavailable (settings `refuse`); CommitUnknown; what the block and `connect` raise; psycopg.Error,
        also if the block left the transaction failed or ended it.
        """
        if self.settings.without is WithoutRedis.REFUSE and not self.store.connected:
            raise CacheUnavailable
        async with lease or self._connect() as conn:
            if begin is None:
                write = await Transaction.begin(conn, self.store, locks)
            else:
                xact_id, epoch = await begin(conn)
                self.store.compare(epoch)
                write = Transaction(conn, xact_id, self.store, commit)
            try:
                write.invalidate(*tags)
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

    async def invalidate(self, *tags: Tag) -> int:
        """Invalidate tags, and their parts, whose rows were changed by other means, after the commit.

        Return how many there were. Raises: CacheUnavailable.
        """
        try:
            await self.store.register([tag.meta for tag in tags], 0)
            parts = sum(await self.store.walk.unlink(*map(keyspace.parts, tags)))
            await self._watch.confirm()
        except (StoreAway, NotInForceError, RedisError, OSError) as error:
            raise CacheUnavailable from error
        invalidated = len(tags) + parts
        self.counters.invalidations += invalidated
        return invalidated

    async def erase(self, *tags: Tag) -> None:
        """Remove what is kept of tags, after the commit that invalidated them; the rest ends by its TTL."""
        with suppress(StoreAway, RedisError, OSError):
            await self.store.walk.unlink(*map(keyspace.entries, tags))

    async def invalidate_pattern(self, pattern: str) -> int:
        """Invalidate every tag that a key matching the glob pattern could be in; return how many there were.

        A load under way may be about to store a key that is not there yet, so the tags are told from the pattern's
        text before its first wildcard: more than needed, never less. Raises: CacheUnavailable.
        """
        literal = re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]
        try:
            [invalidated] = await self.store.walk.unlink(keyspace.metas(literal))
            self.store.near.clear()
            await self._watch.confirm()
        except (StoreAway, NotInForceError, RedisError, OSError) as error:
            raise CacheUnavailable from error
        self.counters.invalidations += invalidated
        return invalidated

    async def invalidate_namespace(self, namespace: Namespace) -> int:
        """Invalidate every tag of a namespace; return how many there were. Raises: CacheUnavailable."""
        return await self.invalidate_pattern(namespace.prefix + "*")


def _reads(keys: Sequence[Key], arguments: Sequence[Hashable], load: LoadMany) -> list[Read]:
    return [Read(key, argument, load) for key, argument in zip(keys, arguments, strict=True)]
