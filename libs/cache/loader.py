"""Loads what is not cached, and stores it behind the replies.

Callers share loads, and loads share statements: a hundred misses of one key send one, and so do a hundred keys that are
looked up alike. A load has no task of its own, which would cost more than its row: one task runs what has gathered in a
lane, one statement after the other.

If a statement takes longer than PATIENCE_SECONDS, the loads behind it go ahead on another connection. If it fails, all
its loads fail, for instance after the statement timeout. But after a DataError, which one argument or its rows have
caused, each argument is loaded alone, and only that one fails.
"""

import asyncio
import random
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import psycopg

from libs.cache.batcher import LARGEST_CALL, Batcher, of_each
from libs.cache.codec import Entry, Fill, Meta, now_ms
from libs.cache.keys import Key
from libs.cache.reply import Connect, LoadMany, LoadOne, LoadResult, Read
from libs.cache.statistics import Counters
from libs.cache.store import Store, StoreAway

T = TypeVar("T")

# An id above that of every transaction whose registration may have been lost.
BARRIER = "SELECT pg_current_xact_id()::text::bigint"

MOST_ROWS = 512  # of one statement; encoding them takes about 1 ms, during which no RPC runs
LARGEST_FILL = 65_536  # bytes of one command; packing 2 MB takes seven times as long for each entry (decision 0028)
PATIENCE_SECONDS = 0.01  # after which a lane sends its next statement beside the one that still runs

# Nobody waits for a fill; but who asks this process for its entry meanwhile has it sent first.
FILL_DELAY_SECONDS = 0.02


class InFlightLoad:
    """One load, of a reply that belongs to a generation if it is to be stored.

    Once it has landed `may_be_stored` says whether all that was registered with the generation had ended before it
    looked.
    """

    __slots__ = ("_entry", "_error", "_waiting", "may_be_stored", "meta", "read")

    def __init__(self, read: Read, meta: Meta | None) -> None:
        """Prepare; nothing is under way."""
        self.read = read
        self.meta = meta
        self.may_be_stored = False
        self._entry: Entry | None = None
        self._error: BaseException | None = None
        self._waiting: list[asyncio.Future[Entry]] = []

    async def wait(self) -> Entry:
        """Return what is loaded. Raises what the load does; a caller that goes away does not end it."""
        if self._error is not None:
            raise self._error
        if self._entry is not None:
            return self._entry
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return await future

    def land(self, entry: Entry, *, may_be_stored: bool) -> None:
        """Hand the entry to all who wait."""
        self._entry, self.may_be_stored = entry, may_be_stored
        for future in self._waiting:
            if not future.done():
                future.set_result(entry)

    def fail(self, error: BaseException) -> None:
        """Hand the error to all who wait."""
        self._error = error
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)


class Loader:
    """The loads of one process. `encode` makes the bytes of a loaded value; `connect` lends connections."""

    def __init__(
        self,
        store: Store,
        gather: Batcher,
        counters: Counters,
        connect: Connect,
        encode: Callable[[Any], bytes],
        ttl_negative: int,
    ) -> None:
        """Prepare; an answer that there is nothing is kept for `ttl_negative` s at most."""
        self.connect = connect
        self.barrier_statement = BARRIER
        self.unstored: set[str] = set()  # entries that wait to be stored
        self._store = store
        self._batcher = gather
        self._counters = counters
        self._encode = encode
        self._ttl_negative = ttl_negative
        self._lanes: dict[Hashable, list[InFlightLoad]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._flights: dict[tuple[str, bytes], InFlightLoad] = {}
        self._landed: list[tuple[InFlightLoad, Fill]] = []
        self._fills: set[asyncio.Task[None]] = set()

    async def settle(self) -> None:
        """Wait for the loads and fills that are under way now."""
        self._store_landed()
        while tasks := self._fills | self._tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
            self._store_landed()

    async def store_now(self) -> None:
        """Store what waits for it, of which there is something, and return when it is done."""
        self._store_landed()
        await asyncio.wait(self._fills)

    def under_way(self, key: Key, meta: Meta) -> InFlightLoad | None:
        """Return the load of a key under a generation, also if it has landed and is not stored yet."""
        return self._flights.get((key.entry, meta.generation))

    def start(self, read: Read, meta: Meta | None, *, behind: bool = False) -> InFlightLoad:
        """Start a load, which is stored if it may be; without a meta it is not.

        One that no caller waits for goes `behind`, so that none waits for its end either.
        """
        in_flight = InFlightLoad(read, meta)
        if meta is not None:
            self._flights[read.key.entry, meta.generation] = in_flight
        self._queue((read.load, read.batch and read.batch(read.argument), behind), [in_flight], read.load)
        return in_flight

    def _queue(
        self, lane: Hashable, in_flight_loads: list[InFlightLoad], load: LoadMany, rows: int = MOST_ROWS
    ) -> None:
        """Have in_flight_loads wait in a lane, whose statements load so many rows."""
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = []
            task = asyncio.create_task(self._drain(lane, waiting, load, rows))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        waiting += in_flight_loads

    async def _drain(self, lane: Hashable, waiting: list[InFlightLoad], load: LoadMany, rows: int) -> None:
        try:
            while waiting:
                in_flight_loads = _take(waiting, rows, _rows)
                try:
                    await self._fly(in_flight_loads, load, lambda: self._overtake(lane, waiting, load, rows))
                except psycopg.DataError:  # one argument or its rows have caused it: the others can be answered
                    self._queue((lane, "alone"), in_flight_loads, load, rows=1)
        finally:
            if self._lanes.get(lane) is waiting:
                del self._lanes[lane]
            self._fail(waiting, asyncio.CancelledError())  # only if this task was cancelled

    def _overtake(self, lane: Hashable, waiting: list[InFlightLoad], load: LoadMany, rows: int) -> None:
        """Let loads that wait behind a slow statement, or come while it runs, go ahead on another connection."""
        if self._lanes.get(lane) is waiting:
            del self._lanes[lane]
            if waiting:
                self._queue(lane, waiting, load, rows)
                waiting.clear()

    async def _fly(self, in_flight_loads: Sequence[InFlightLoad], load: LoadMany, late: Callable[[], None]) -> None:
        """Load by one statement, and hand out what it found, or the error; call `late` if it takes long.

        Raises: DataError if there are several in_flight_loads; they have no answer then.
        """
        try:
            is_cold = any(in_flight.meta is not None and in_flight.meta.cold for in_flight in in_flight_loads)
            barrier = await self._batcher.ask("barrier", None, self.barrier) if is_cold else 0
            loaded_ms = now_ms()
            arguments = list(dict.fromkeys([in_flight.read.argument for in_flight in in_flight_loads]))
            connect = (load.connect if isinstance(load, LoadOne) else None) or self.connect
            async with connect() as conn:  # no timer before: what waits for a connection may gather
                timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, late)
                try:
                    found = of_each(arguments, await load(conn, arguments))
                finally:
                    timer.cancel()
            for in_flight in in_flight_loads:
                self._land(in_flight, found[in_flight.read.argument], barrier, loaded_ms)
        except BaseException as error:  # also a cancellation: no caller may wait for ever
            if isinstance(error, psycopg.DataError) and len(in_flight_loads) > 1:
                raise
            self._fail(in_flight_loads, error)
            if not isinstance(error, Exception):
                raise

    async def barrier(self, keys: Sequence[None]) -> list[int]:
        """Return a barrier, which holds for every load that begins after it was asked for."""
        async with self.connect() as conn:
            cursor = await conn.execute(self.barrier_statement)
            return [row[0] for row in await cursor.fetchall()]

    def _land(self, in_flight: InFlightLoad, loaded: LoadResult[Any], barrier: int, loaded_ms: int) -> None:
        """Hand out an entry, and keep it for the next fill if it may be stored; or hand out the argument's error."""
        if isinstance(loaded.value, Exception):
            self._fail([in_flight], loaded.value)
            return
        entry, meta = Entry(None if loaded.value is None else self._encode(loaded.value), loaded_ms), in_flight.meta
        may_be_stored = meta is not None and loaded.xmin > max(meta.highest, barrier)
        in_flight.land(entry, may_be_stored=may_be_stored)
        if meta is None:
            return
        if not may_be_stored:
            self._counters.refused_fills += 1
            self._forget(in_flight)
            return
        if not self._landed:
            asyncio.get_running_loop().call_later(FILL_DELAY_SECONDS, self._store_landed)
        key = in_flight.read.key
        fill = Fill(key, meta.generation, loaded.xmin, barrier, self._ttl_ms(key, entry), entry)
        self._landed.append((in_flight, fill))
        self.unstored.add(key.entry)

    def _ttl_ms(self, key: Key, entry: Entry) -> int:
        """Return the lifetime of an entry: up to a tenth shorter, so that what was stored together ends apart."""
        ttl = key.tag.namespace.ttl
        if entry.body is None:
            ttl = min(ttl, self._ttl_negative)
        return int(ttl * 1000 * (1 - random.random() / 10))  # noqa: S311

    def _store_landed(self) -> None:
        landed, self._landed = self._landed, []
        self.unstored.clear()
        while landed:
            task = asyncio.create_task(self._fill(_take(landed, LARGEST_FILL, _size)))
            self._fills.add(task)
            task.add_done_callback(self._fills.discard)

    async def _fill(self, landed: Sequence[tuple[InFlightLoad, Fill]]) -> None:
        """Store what has landed, but for what a write has overtaken."""
        try:
            with suppress(StoreAway):
                stored = await self._store.fill([fill for _, fill in landed])
                self._counters.sets += stored
                self._counters.refused_fills += len(landed) - stored
        finally:
            for in_flight, _ in landed:
                self._forget(in_flight)

    def _fail(self, in_flight_loads: Sequence[InFlightLoad], error: BaseException) -> None:
        for in_flight in in_flight_loads:
            in_flight.fail(error)
            self._forget(in_flight)

    def _forget(self, in_flight: InFlightLoad) -> None:
        """Let no caller join any more."""
        if in_flight.meta is not None:
            name = in_flight.read.key.entry, in_flight.meta.generation
            if self._flights.get(name) is in_flight:
                del self._flights[name]


def _take(waiting: list[T], most: int, size: Callable[[T], int]) -> list[T]:
    """Take the first that have `most` together at most, but at least one, and no more than one call may have."""
    total = count = 0
    for each in waiting[:LARGEST_CALL]:
        total += size(each)
        if total > most and count:
            break
        count += 1
    taken = waiting[:count]
    del waiting[:count]
    return taken


def _rows(in_flight: InFlightLoad) -> int:
    return in_flight.read.rows


def _size(landed: tuple[InFlightLoad, Fill]) -> int:
    return len(landed[1].entry.body or b"")
