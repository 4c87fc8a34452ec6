"""Cached reads, and transactions that invalidate them.

A transaction registers its ID with each tag it writes to before it commits, which gives the tag a new version. An entry
counts only under the version it was stored under, and is stored only if the snapshot of its load shows that every
registered transaction had ended. Nothing happens after the commit, so a killed process leaves nothing undone.
docs/decisions/0003 says why each step is needed.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import psycopg
from redis.exceptions import RedisError

from libs.cache import keyspace
from libs.cache.batcher import Batcher
from libs.cache.codec import Entry, TagVersion, now_ms
from libs.cache.epoch import NotInForceError
from libs.cache.keys import Key, Namespace, Tag
from libs.cache.loader import InFlightLoad, Loader
from libs.cache.recovery import Recovery
from libs.cache.refresh_ahead import Refiller, is_due
from libs.cache.reply import MAX_AGE, Connect, LoadMany, LoadOne, LoadResult, Read, Replica, Reply
from libs.cache.settings import CacheSettings, WithoutRedis
from libs.cache.statistics import Counters
from libs.cache.store import Store, StoreAway
from libs.cache.transaction import Begin, Commit, Transaction, plain_commit


class CacheUnavailable(Exception):
    """An invalidation can't reach Redis, and the settings say to refuse then."""


class Cache:
    """The cache of one process.

    `connect` lends connections in autocommit to the primary; `encode` makes the bytes of a loaded value. A `read_only`
    process registers the tags of the outbox but leaves the rows to others.
    """

    def __init__(
        self,
        settings: CacheSettings,
        connect: Connect,
        encode: Callable[[Any], bytes],
        namespaces: Iterable[Namespace] = (),
        *,
        read_only: bool = False,
        replica: Replica | None = None,
    ) -> None:
        """Prepare; nothing connects before `open`. The settings override the namespaces' TTLs."""
        self.settings = settings
        self.namespaces = {each.name: settings.apply(each) for each in namespaces}
        self.counters = Counters()
        self._batcher = Batcher()
        tracked = map(self.namespace, {*self.namespaces, *(settings.near or ())})
        self.store = Store(settings, tracked, self._batcher)
        self._connect = connect
        self.loader = Loader(self.store, self._batcher, self.counters, connect, encode, settings.ttl_negative, replica)
        leases = settings.without is WithoutRedis.WAIT
        self._recovery = Recovery(self.store, connect, settings.poll / 1000, read_only=read_only, leases=leases)
        self.refiller = Refiller(settings.refill, self.counters, self._refill)

    async def open(self) -> None:
        """Connect if the server is there, and keep connected from now on."""
        await self._recovery.open()

    async def close(self) -> None:
        """Let loads and fills end, and disconnect."""
        await self.refiller.close()
        await self._recovery.close()
        await self.settle()
        await self._batcher.close()
        await self.store.close()

    def database_moved(self) -> None:
        """Stop using the cache until an epoch of the new primary is in force; call it before the first statement there.

        Until then a process that still reads from the old primary may store old rows under the epoch of before.
        """
        self.store.mark_lost(NotInForceError("the database has another history"))

    async def settle(self) -> None:
        """Wait for the refills, loads and fills that are under way now."""
        await self.refiller.settle()
        await self.loader.settle()

    def namespace(self, name: str) -> Namespace:
        """Return a namespace with its settings; one that was not passed in has the default TTL."""
        return self.namespaces.get(name) or self.settings.apply(Namespace.of(name, self.settings.ttl_default))

    # Reads

    async def get(
        self,
        key: Key,
        load: Callable[[psycopg.AsyncConnection[Any]], Awaitable[LoadResult[Any]]],
        *,
        connect: Connect | None = None,
        repeatable: bool = False,
    ) -> Reply:
        """Return the reply of `key`. On a miss `load` runs once for all callers of that moment.

        `connect` lends its connection, instead of the cache's. `repeatable`: key and load follow from the request's
        bytes alone.
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
        replica: bool = False,
    ) -> Reply:
        """Return the reply of `key`. On a miss `load` runs for all keys that are read in the same tick.

        `load` gets the arguments and returns as many results, in their order, from one statement. A result whose value
        is an error is raised to the callers of that argument alone, and is not cached. `load` must be the same function
        in each call: a bound method or a module's function, no lambda. `batch` makes a batch key of an argument: only
        arguments with equal batch keys are loaded together. `rows` estimates how many rows `load` reads for the
        argument; a batch has up to MAX_ROWS in all, or one argument. `repeatable` is as for `get`. `replica`: try the
        replica first, if there is one; what it has read is used only if it could be stored.
        """
        return await self.resolve(Read(key, argument, load, batch, rows, repeatable, replica))

    async def get_many(self, keys: Sequence[Key], arguments: Sequence[Hashable], load: LoadMany) -> list[Reply]:
        """Return the replies of distinct keys, as `get_batched` does: with one MGET, and one load for all misses.

        It has no task per key, which would cost more than everything else.
        """
        max_age = MAX_AGE.get()
        reads = [Read(key, argument, load) for key, argument in zip(keys, arguments, strict=True)]
        if not self.loader.unstored.isdisjoint([key.entry for key in keys]):
            await self.loader.store_now()
        if max_age == 0 or not all(map(self._may_hit, keys)):
            return await self._bypass(reads)
        try:
            lookups = await self.store.get_many(keys)
            replies = [self._hit(found.entry, max_age) for found in lookups]
            missed = [place for place, reply in enumerate(replies) if reply is None]
            known = {place: lookups[place].tag_version(keys[place]) for place in missed}
            unknown = [place for place in missed if known[place] is None]
            opened = await asyncio.gather(*(self.store.open(keys[place].tag.version_key) for place in unknown))
        except StoreAway:
            return await self._bypass(reads)
        self.counters.misses += len(missed)
        known |= dict(zip(unknown, opened, strict=True))
        loads = {place: self._join_or_start(reads[place], version) for place, version in known.items() if version}
        for place, load_of_place in loads.items():
            replies[place] = Reply((await load_of_place.wait()).body, "miss", 0)
        return [reply for reply in replies if reply is not None]

    def near(self, key: Key) -> Reply | None:
        """Return the reply of `key` if the near cache has it."""
        if (entry := self.store.near.get(key)) is None:
            return None
        self.counters.hits += 1
        self.counters.near += 1
        return Reply(entry.body, "near", max(0, now_ms() - entry.loaded_ms))

    async def peek(self, key: Key) -> Reply | None:
        """Return the reply of `key` if it is cached; None if it is not, or Redis is away. Loads nothing."""
        if self._may_hit(key):
            with suppress(StoreAway):
                return self._hit((await self.store.get(key)).entry, None)
        return None

    async def resolve(self, read: Read) -> Reply:
        """Return the reply to a read, such as the `again` of an earlier reply."""
        key, again, max_age = read.key, read if read.repeatable else None, MAX_AGE.get()
        if key.tag.namespace.near and max_age is None and (reply := self.near(key)) is not None:
            return reply._replace(again=again)
        if key.entry in self.loader.unstored:
            await self.loader.store_now()
        # Asked anew for each read, just before it is sent: `_may_hit`, inlined.
        lease = self._recovery.lease
        if max_age == 0 or not self.store.ready or not (lease is None or lease.covers(key.tag.version_key)):
            return (await self._bypass([read]))[0]
        try:
            found = await self.store.get(key)
            if (entry := found.entry) is not None:
                age_ms = max(0, now_ms() - entry.loaded_ms)
                if max_age is None or age_ms <= max_age * 1000:
                    self.counters.hits += 1
                    reply = Reply(entry.body, "hit", age_ms, again)
                    if key.entry in self.refiller.unread:
                        self.refiller.hit(key)
                    if key.tag.namespace.refresh < 1 and is_due(key, reply):
                        self._refresh(read, found.tag_version(key))
                    return reply
            tag_version = found.tag_version(key) or await self.store.open(key.tag.version_key)
        except StoreAway:
            return (await self._bypass([read]))[0]
        self.counters.misses += 1
        self.refiller.missed(read)
        return Reply((await self._load(read, tag_version)).body, "miss", 0, again)

    async def _bypass(self, reads: Sequence[Read]) -> list[Reply]:
        """Load past the cache."""
        self.counters.bypasses += len(reads)
        loads = [self.loader.start(read, None) for read in reads]
        return [Reply((await load.wait()).body, "bypass", 0) for load in loads]

    def _may_hit(self, key: Key) -> bool:
        """Return whether a read that begins now may be a hit."""
        lease = self._recovery.lease
        return self.store.ready and (lease is None or lease.covers(key.tag.version_key))

    def _hit(self, entry: Entry | None, max_age: int | None) -> Reply | None:
        """Return the reply of an entry that is not too old."""
        if entry is not None:
            age_ms = max(0, now_ms() - entry.loaded_ms)
            if max_age is None or age_ms <= max_age * 1000:
                self.counters.hits += 1
                return Reply(entry.body, "hit", age_ms)
        return None

    async def _load(self, read: Read, tag_version: TagVersion) -> Entry:
        """Load, or join a load under way that can't be older than any write the caller must see.

        A load under the same version is such a one if it may be stored: all registered writes had ended before it read.
        """
        if (running := self.loader.in_flight(read.key, tag_version)) is not None:
            entry = await running.wait()
            if running.may_be_stored:
                return entry
        return await self.loader.start(read, tag_version).wait()

    def _join_or_start(self, read: Read, tag_version: TagVersion) -> InFlightLoad:
        """Join a load that is about to be stored; otherwise start one."""
        running = self.loader.in_flight(read.key, tag_version)
        return running if running is not None and running.may_be_stored else self.loader.start(read, tag_version)

    def _refresh(self, read: Read, tag_version: TagVersion | None) -> None:
        """Load behind a reply, unless a load is under way. It is stored only under the version of the hit."""
        if tag_version is not None and self.loader.in_flight(read.key, tag_version) is None:
            self.counters.refreshes += 1
            self.loader.start(read, tag_version, behind=True)

    async def _refill(self, read: Read) -> bool:
        """Load an entry that no caller waits for, unless it is cached or under way; return whether it may be stored.

        Raises: StoreAway; what the load raises.
        """
        found = await self.store.get(read.key)
        tag_version = found.tag_version(read.key) or await self.store.open(read.key.tag.version_key)
        if found.entry is not None or self.loader.in_flight(read.key, tag_version) is not None:
            return False
        load = self.loader.start(read, tag_version, behind=True)
        await load.wait()
        return load.may_be_stored

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

        The transaction is registered while the block's statements run. `locks` are advisory locks, taken in this order
        before anything else and held until the end. `lease` lends the connection instead of `connect`. `begin` and
        `commit` are for callers that send more in those round trips; `begin` takes the locks, then.
        Raises: CacheUnavailable (setting `refuse`); CommitUnknown; what the block and `connect` raise; psycopg.Error,
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
                try:
                    await write.registered()
                except StoreAway as error:
                    if self.settings.without is WithoutRedis.REFUSE:
                        raise CacheUnavailable from error
                    await write.write_outbox()
            finally:
                write.forget()
            await write.commit()
        self.counters.invalidations += len(write.registrations)
        self.refiller.written(write.registrations)
        if write.in_outbox:
            await self._outbox_seen(write)

    async def _outbox_seen(self, write: Transaction) -> None:
        """Register a committed transaction if Redis is back; else wait, with `wait`, until no read misses it.

        Redis may be back, and this process may serve hits, since before the rows were visible.
        """
        try:
            await write.register_again()
        except StoreAway:
            await self._recovery.seen([(key, write.xact_id) for key in write.registrations])

    async def all_seen(self) -> None:
        """Return when every later read shows what any process committed before.

        With `wait` only, otherwise at once: for replies to writes that another process may not have answered yet.
        Raises: what `connect` raises; psycopg.Error.
        """
        await self._recovery.all_seen()

    # By hand

    async def invalidate(self, *tags: Tag) -> int:
        """Invalidate tags and their sub-tags, whose rows were changed by other means, after the commit.

        Return how many there were. Raises: CacheUnavailable.
        """
        try:
            await self.store.register([tag.version_key for tag in tags], 0)
            sub_tags = sum(await self.store.keyspace.unlink(*map(keyspace.sub_tags, tags)))
            await self._recovery.confirm()
        except (StoreAway, NotInForceError, RedisError, OSError) as error:
            raise CacheUnavailable from error
        invalidated = len(tags) + sub_tags
        self.counters.invalidations += invalidated
        return invalidated

    async def erase(self, *tags: Tag) -> None:
        """Delete the entries of tags, after the commit that invalidated them. Without Redis they end by their TTL."""
        with suppress(StoreAway, RedisError, OSError):
            await self.store.keyspace.unlink(*map(keyspace.entries, tags))

    async def invalidate_pattern(self, pattern: str) -> int:
        """Invalidate every tag that a key matching the glob pattern could have; return how many there were.

        A load under way may be about to store a key that does not exist yet. So the tags follow from the text before
        the first wildcard: more than needed, never fewer. Raises: CacheUnavailable.
        """
        literal = re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]
        try:
            [invalidated] = await self.store.keyspace.unlink(keyspace.tags(literal))
            self.store.near.clear()
            await self._recovery.confirm()
        except (StoreAway, NotInForceError, RedisError, OSError) as error:
            raise CacheUnavailable from error
        self.counters.invalidations += invalidated
        return invalidated

    async def invalidate_namespace(self, namespace: Namespace) -> int:
        """Invalidate every tag of a namespace; return how many there were. Raises: CacheUnavailable."""
        return await self.invalidate_pattern(namespace.prefix + "*")
