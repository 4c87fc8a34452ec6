"""Loads what is not cached, and stores it behind the replies.

Reads of the same key share a load, and loads of the same kind share statements: one task per batch key runs them, one
statement per batch. A task per load costs more than its row.

If a statement takes longer than PATIENCE_SECONDS, the loads that wait for the next one go ahead on another connection.
If it fails, all its loads fail, for example after the statement timeout. Only after a DataError, which one argument or
its rows have caused, is each argument loaded alone.
"""

import asyncio
import random
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from libs.cache.batcher import MAX_BATCH, Batcher
from libs.cache.codec import Entry, Fill, TagVersion, now_ms
from libs.cache.keys import Key
from libs.cache.reply import Connect, LoadMany, LoadOne, LoadResult, Read, Replica
from libs.cache.statistics import Counters
from libs.cache.store import Store, StoreAway

# An ID above that of every transaction whose registration may have been lost.
BARRIER = "SELECT pg_current_xact_id()::text::bigint"

MAX_ROWS = 512  # per statement; encoding them takes about 1 ms, during which no RPC runs
MAX_FILL_BYTES = 65_536  # per command; packing 2 MB takes seven times as long for each entry (decision 0028)
PATIENCE_SECONDS = 0.01

# Fills are delayed and sent in batches. A read of an entry that waits to be stored sends them first.
FILL_DELAY_SECONDS = 0.02
FILL_MARGIN_MS = 500  # from a load to its fill, at most: a value that is true for a time ends by so much earlier


@dataclass(eq=False, slots=True)
class InFlightLoad:
    """One load. With a tag version it is stored if it `may_be_stored`: it missed no write that was registered."""

    read: Read
    tag_version: TagVersion | None
    behind: bool = False
    may_be_stored: bool = False
    _entry: Entry | None = None
    _error: BaseException | None = None
    _waiting: list["asyncio.Future[Entry]"] = field(default_factory=list)

    async def wait(self) -> Entry:
        """Return what is loaded. Raises what the load raises; a caller that is canceled does not end it."""
        if self._error is not None:
            raise self._error
        if self._entry is not None:
            return self._entry
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return await future

    def resolve(self, entry: Entry, *, may_be_stored: bool) -> None:
        """Give the entry to all callers."""
        self._entry, self.may_be_stored = entry, may_be_stored
        for future in self._waiting:
            if not future.done():
                future.set_result(entry)

    def fail(self, error: BaseException) -> None:
        """Give the error to all callers."""
        self._error = error
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)


class Loader:
    """The loads of one process. `encode` makes the bytes of a loaded value; `connect` lends connections."""

    def __init__(
        self,
        store: Store,
        batcher: Batcher,
        counters: Counters,
        connect: Connect,
        encode: Callable[[Any], bytes],
        ttl_negative: int,
        replica: Replica | None = None,
    ) -> None:
        """Prepare. The answer that there is nothing is kept for `ttl_negative` s at most."""
        self._replica = replica
        self.connect = connect
        self.barrier_statement = BARRIER
        self.unstored: set[str] = set()  # entries that wait to be stored
        self._store = store
        self._batcher = batcher
        self._counters = counters
        self._encode = encode
        self._ttl_negative = ttl_negative
        self._queues: dict[Hashable, list[InFlightLoad]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight: dict[tuple[str, bytes], InFlightLoad] = {}
        self._to_store: list[tuple[InFlightLoad, Fill]] = []
        self._fills: set[asyncio.Task[None]] = set()

    async def settle(self) -> None:
        """Wait for the loads and fills that are under way now."""
        self._start_fills()
        while tasks := self._fills | self._tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
            self._start_fills()

    async def store_now(self) -> None:
        """Store the entries that wait for it, at least one, and return when that is done."""
        self._start_fills()
        await asyncio.wait(self._fills)

    def in_flight(self, key: Key, tag_version: TagVersion) -> InFlightLoad | None:
        """Return the load of a key under a version, even if it is done and not stored yet."""
        return self._in_flight.get((key.entry, tag_version.version))

    def start(self, read: Read, tag_version: TagVersion | None, *, behind: bool = False) -> InFlightLoad:
        """Start a load. Without a tag version it is not stored.

        `behind`: no caller waits for it, so it is batched apart, and no caller's load waits for its statement.
        """
        load = InFlightLoad(read, tag_version, behind)
        if tag_version is not None:
            self._in_flight[read.key.entry, tag_version.version] = load
        from_replica = read.replica and self._replica is not None
        batch_key = read.load, read.batch and read.batch(read.argument), behind, from_replica
        self._queue(batch_key, [load], read.load)
        return load

    def _queue(self, batch_key: Hashable, loads: list[InFlightLoad], run: LoadMany, rows: int = MAX_ROWS) -> None:
        """Queue loads for the next statement of their batch key, which reads up to so many rows."""
        queue = self._queues.get(batch_key)
        if queue is None:
            queue = self._queues[batch_key] = []
            task = asyncio.create_task(self._run_queue(batch_key, queue, run, rows))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        queue += loads

    async def _run_queue(self, batch_key: Hashable, queue: list[InFlightLoad], run: LoadMany, rows: int) -> None:
        def overtake() -> None:
            """Move the loads that wait behind a slow statement to another queue and another connection.

            Not if no caller waits for them: they must not take more connections.
            """
            if self._queues.get(batch_key) is queue and not (queue and queue[0].behind):
                del self._queues[batch_key]
                if queue:
                    self._queue(batch_key, queue, run, rows)
                    queue.clear()

        try:
            while queue:
                loads = _take(queue, rows, [load.read.rows for load in queue[:MAX_BATCH]])
                try:
                    await self._run_batch(loads, run, overtake)
                except psycopg.DataError:  # one argument or its rows have caused it: the others can be answered
                    self._queue((batch_key, "alone"), loads, run, rows=1)
        finally:
            if self._queues.get(batch_key) is queue:
                del self._queues[batch_key]
            if queue:  # this task was canceled
                self._fail(queue, asyncio.CancelledError())

    async def _run_batch(self, loads: Sequence[InFlightLoad], run: LoadMany, overtake: Callable[[], None]) -> None:
        """Run one statement, and give its results or its error to the callers; call `overtake` if it is slow.

        Raises: DataError if there are several loads; their callers have no answer then.
        """
        try:
            distinct: dict[Hashable, None] = {}
            unverified = False
            for load in loads:
                distinct[load.read.argument] = None
                unverified = unverified or (load.tag_version is not None and load.tag_version.unverified)
            barrier = await self._batcher.ask("barrier", None, self._take_barrier) if unverified else 0
            loaded_ms = now_ms()
            results = await self._from_replica(loads, run, list(distinct), overtake)
            arguments = [argument for argument in distinct if argument not in results]
            if arguments:
                results |= await self._from_primary(run, arguments, overtake)
            for load in loads:
                self._resolve(load, results[load.read.argument], barrier, loaded_ms)
        except BaseException as error:  # also a cancellation: no caller may wait forever
            if isinstance(error, psycopg.DataError) and len(loads) > 1:
                raise
            self._fail(loads, error)
            if not isinstance(error, Exception):
                raise

    async def _from_primary(
        self, run: LoadMany, arguments: Sequence[Hashable], overtake: Callable[[], None]
    ) -> dict[Hashable, LoadResult[Any]]:
        """Return the result for each argument; call `overtake` if the statement is slow."""
        connect = (run.connect if isinstance(run, LoadOne) else None) or self.connect
        async with connect() as conn:
            return dict(zip(arguments, await _run(run, conn, arguments, overtake), strict=True))

    async def _from_replica(
        self,
        loads: Sequence[InFlightLoad],
        run: LoadMany,
        arguments: Sequence[Hashable],
        overtake: Callable[[], None],
    ) -> dict[Hashable, LoadResult[Any]]:
        """Return the results that show every registered write; none if the replica can't be used."""
        replica = self._replica
        if replica is None or not loads[0].read.replica or not replica.usable:
            return {}
        last_xids: dict[Hashable, int] = {}
        for load in loads:
            if load.tag_version is None or load.tag_version.unverified:  # it is unknown which writes it must show
                return {}
            name = load.read.argument
            last_xids[name] = max(last_xids.get(name, 0), load.tag_version.last_xid)
        try:
            found, epoch = await replica.read(lambda conn: _run(run, conn, arguments, overtake))
        except Exception:  # the primary answers, or has the same error
            return {}
        if epoch != self._store.epoch:  # a standby of another line of history, or one that is behind its last change
            return {}
        results = {
            argument: result
            for argument, result in zip(arguments, found, strict=True)
            if result.xmin > last_xids[argument] and not isinstance(result.value, Exception)
        }
        self._counters.replica_loads += len(results)
        self._counters.replica_behind += len(arguments) - len(results)
        return results

    async def _take_barrier(self, _: Sequence[None]) -> list[int]:
        """Return a barrier, valid for every load that begins after it was asked for."""
        async with self.connect() as conn:
            [(barrier,)] = await (await conn.execute(self.barrier_statement)).fetchall()
            return [barrier]

    def _resolve(self, load: InFlightLoad, result: LoadResult[Any], barrier: int, loaded_ms: int) -> None:
        """Give a result to the callers of a load, and queue it to be stored if it may be."""
        if isinstance(result.value, Exception):
            self._fail([load], result.value)
            return
        entry = Entry(None if result.value is None else self._encode(result.value), loaded_ms)
        tag_version = load.tag_version
        may_be_stored = tag_version is not None and result.xmin > max(tag_version.last_xid, barrier)
        load.resolve(entry, may_be_stored=may_be_stored)
        if tag_version is None:
            return
        if not may_be_stored:
            self._counters.refused_fills += 1
            self._forget(load)
            return
        if not self._to_store:
            asyncio.get_running_loop().call_later(FILL_DELAY_SECONDS, self._start_fills)
        key = load.read.key
        ttl = key.tag.namespace.ttl if entry.body is not None else min(key.tag.namespace.ttl, self._ttl_negative)
        ttl_ms = int(ttl * 1000 * (1 - random.random() / 10))  # noqa: S311 - stored together, they expire apart
        if (valid_ms := getattr(result, "valid_ms", None)) is not None:
            ttl_ms = min(ttl_ms, valid_ms - (now_ms() - loaded_ms) - FILL_MARGIN_MS)
            if ttl_ms < 1:
                self._forget(load)
                return
        self._to_store.append((load, Fill(key, tag_version.version, result.xmin, barrier, ttl_ms, entry)))
        self.unstored.add(key.entry)

    def _start_fills(self) -> None:
        queue, self._to_store = self._to_store, []
        self.unstored.clear()
        while queue:
            sizes = [len(fill.entry.body or b"") for _, fill in queue[:MAX_BATCH]]
            task = asyncio.create_task(self._fill(_take(queue, MAX_FILL_BYTES, sizes)))
            self._fills.add(task)
            task.add_done_callback(self._fills.discard)

    async def _fill(self, batch: Sequence[tuple[InFlightLoad, Fill]]) -> None:
        """Store entries, except those that a write has overtaken."""
        loads, fills = zip(*batch, strict=True)
        try:
            with suppress(StoreAway):
                stored = await self._store.fill(fills)
                self._counters.sets += stored
                self._counters.refused_fills += len(fills) - stored
        finally:
            for load in loads:
                self._forget(load)

    def _fail(self, loads: Sequence[InFlightLoad], error: BaseException) -> None:
        for load in loads:
            load.fail(error)
            self._forget(load)

    def _forget(self, load: InFlightLoad) -> None:
        """Let no more reads join a load."""
        if load.tag_version is not None:
            name = load.read.key.entry, load.tag_version.version
            if self._in_flight.get(name) is load:
                del self._in_flight[name]


async def _run(
    run: LoadMany, conn: psycopg.AsyncConnection[Any], arguments: Sequence[Hashable], overtake: Callable[[], None]
) -> Sequence[LoadResult[Any]]:
    """Return what `run` loads; call `overtake` if it is slow. Before, loads may queue while a connection is awaited."""
    timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, overtake)
    try:
        found = await run(conn, arguments)
    finally:
        timer.cancel()
    if len(found) != len(arguments):
        raise ValueError(f"{len(found)} results for {len(arguments)} arguments")
    return found


def _take(queue: list[Any], most: int, sizes: Sequence[int]) -> list[Any]:
    """Remove and return the first items of a queue: as many as have `most` together, at least one."""
    total = count = 0
    for size in sizes:
        total += size
        if total > most and count:
            break
        count += 1
    taken = queue[:count]
    del queue[:count]
    return taken
