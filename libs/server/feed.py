"""Serves a table of changes: lists them by pages, and streams them to watchers.

One poller per process reads the changes of all salons while there are watchers, and passes each change on to the
watchers of its salon. A watcher first reads what it missed by pages, while the poller's changes gather in its queue:
what it reads last is newer than what the poller passed on before. So nothing is left out between the two, and what
comes twice is skipped by its position.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from libs.db import Database, DatabaseUnavailable, PoolExhausted
from libs.messages import encode_repeated
from libs.server import errors
from libs.server.changes import PURGE_ROWS, Change, ChangePage, ChangeTable, Cursor, Position
from libs.server.pagination import size

POLL_SECONDS = 0.1
POLL_ROWS = 500
KEEPALIVE_SECONDS = 15.0
STALE_SECONDS = 15.0  # since the last poll: silence means nothing then
MAX_UNSENT = 1000  # changes of a watcher
SLOW_SECONDS = 1.0  # that a watcher may take for one of them while there are more than MAX_UNSENT
READS_AT_ONCE = 4  # of watchers that catch up: all come back together after an outage
PUSHED_AT_ONCE = 50  # watchers, before other tasks run
MEASURED_SECONDS = 60.0  # for which the delay found by a read is reported
PURGE_SECONDS = 3600
PAUSE_SECONDS = 0.05  # between batches of a purge

log = structlog.get_logger()


class Watcher:
    """A stream of changes: those that wait to be sent. `is_behind` means that some were dropped: read them again."""

    def __init__(self, salon_id: str) -> None:
        """`salon_id` is "" for the changes of all salons."""
        self.salon_id = salon_id
        self.is_behind = False
        self._task = asyncio.current_task()
        self._waiting: deque[Change] = deque()
        self._arrived = asyncio.Event()
        self._sending_since: float | None = None

    def restart(self) -> None:
        """Drop what waits: everything up to now is about to be read."""
        self._waiting.clear()
        self.is_behind = False

    def push(self, changes: Sequence[Change]) -> None:
        """Add changes. If there are too many, drop them; end the stream if its client does not take them."""
        self._arrived.set()
        if not self.is_behind and len(self._waiting) + len(changes) <= MAX_UNSENT:
            self._waiting.extend(changes)
            return
        self._waiting.clear()
        self.is_behind = True
        is_slow = self._sending_since is not None and time.monotonic() - self._sending_since > SLOW_SECONDS
        if is_slow and self._task is not None:
            message = f"the caller is more than {MAX_UNSENT} changes behind: read faster, from the last page_token on"
            self._task.cancel(errors.exhausted("SLOW_READER", message))

    async def next(self) -> Change | None:
        """Return the next change; None after KEEPALIVE_SECONDS without one, or if it `is_behind`."""
        if not self._waiting and not self.is_behind:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    await self._arrived.wait()
        return self._waiting.popleft() if self._waiting else None

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Mark the time for which the client takes a reply."""
        self._sending_since = time.monotonic()
        yield
        self._sending_since = None


class ChangeFeed(Collector):
    """The feed of one table.

    `run` and `purge` are background jobs of the service. The feed is also the collector of its metrics.
    A reply of the list has changes in field 1 and next_page_token in field 2; one of the stream, a change in field 1
    and page_token in field 2.
    """

    def __init__(self, database: Database, table: ChangeTable) -> None:
        """Nothing is read before the first call."""
        self.table = table
        self._database = database
        self._watchers: set[Watcher] = set()
        self._starting = asyncio.Lock()
        self._started = asyncio.Event()
        self._position = Position(0, 0)
        self._time = 0  # of the last poll, by the database's clock,
        self._polled = 0.0  # and by the monotonic clock
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._delay = 0.0
        self._measured = 0.0

    async def list(self, request: Any) -> bytes:
        """Return the reply to a request with salon_id, page_size, page_token and from_start.

        Raises: INVALID_FIELD; CURSOR_EXPIRED.
        """
        salon_id, table = request.salon_id, self.table
        if request.page_token and request.from_start:
            raise errors.invalid_fields([("from_start", "is only allowed without a page_token")])
        after: Cursor | Position | None = table.cursor(salon_id, request.page_token) if request.page_token else None
        async with self._database.connection() as conn:
            if request.from_start:
                after = await table.oldest(conn)
            if after is None:
                page = await table.latest(conn)
            else:
                page = await table.read(conn, salon_id, after, size(request.page_size))
                self._measure(page)
        token = table.token(salon_id, page.cursor)
        return encode_repeated([change.body for change in page.changes]) + encode_repeated([token.encode()], 2)

    async def watch(self, request: Any) -> AsyncIterator[bytes]:
        """Yield the replies to a request with salon_id and page_token, until the caller stops.

        After the changes that the caller missed, and then after KEEPALIVE_SECONDS without a change, a reply has a
        page_token only. Raises: INVALID_FIELD; CURSOR_EXPIRED; the errors of `Database.connection`.
        """
        salon_id, table = request.salon_id, self.table
        cursor = table.cursor(salon_id, request.page_token) if request.page_token else None
        watcher, is_new = Watcher(salon_id), True
        self._watchers.add(watcher)
        try:
            await self._start()
            while True:
                watcher.restart()
                is_full = True
                while is_full:
                    page = await self._missed(salon_id, cursor)
                    for change in page.changes:
                        with watcher.sending():
                            yield self._reply(salon_id, Cursor(change.position, change.time), change.body)
                    cursor, is_full = page.cursor, page.is_full
                position = page.cursor.position
                if is_new:
                    yield self._reply(salon_id, page.cursor)
                    is_new = False
                while not watcher.is_behind:
                    next_change = await watcher.next()
                    if next_change is None and not watcher.is_behind:
                        self._require_recent_poll()
                        cursor = Cursor(position, self._time)
                        yield self._reply(salon_id, cursor)
                    elif next_change is not None and next_change.position > position:
                        position = next_change.position
                        cursor = Cursor(position, next_change.time)
                        with watcher.sending():
                            yield self._reply(salon_id, cursor, next_change.body)
        finally:
            self._watchers.discard(watcher)

    async def run(self) -> None:
        """Poll while there are watchers, until canceled."""
        while True:
            await self._started.wait()
            failed = False
            while self._watchers:
                try:
                    await self._poll()
                    failed = False
                except (DatabaseUnavailable, PoolExhausted, psycopg.Error) as error:
                    if not failed:
                        log.warning("changes", table=self.table.name, error=repr(error))
                    failed = True
                await asyncio.sleep(POLL_SECONDS)
            self._started.clear()

    async def purge(self) -> None:
        """Delete the changes that are too old, now and every hour, until canceled."""
        while True:
            try:
                deleted = PURGE_ROWS
                while deleted == PURGE_ROWS:
                    async with self._database.connection() as conn:
                        deleted = await self.table.purge(conn)
                    await asyncio.sleep(PAUSE_SECONDS)
            except (DatabaseUnavailable, PoolExhausted, psycopg.Error) as error:
                log.warning("purge", table=self.table.name, error=repr(error))
            await asyncio.sleep(PURGE_SECONDS)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. The delay is that of the last read, 0 if there was none for a minute."""
        is_recent = time.monotonic() - self._measured < MEASURED_SECONDS
        text = "Time for which the oldest change has been waiting for an older transaction to end, in s"
        yield GaugeMetricFamily("parlor_changes_delay_seconds", text, value=self._delay if is_recent else 0.0)
        yield GaugeMetricFamily("parlor_changes_watchers", "Streams of changes", value=len(self._watchers))

    async def _start(self) -> None:
        """Start the poller unless it runs. What it passes on follows what a later read returns."""
        async with self._starting:
            if not self._started.is_set():
                async with self._database.connection() as conn:
                    page = await self.table.latest(conn)
                self._position, self._time, self._polled = page.cursor.position, page.now, time.monotonic()
                self._started.set()

    async def _poll(self) -> None:
        is_full = True
        while is_full:
            async with self._database.connection() as conn:
                page = await self.table.read(conn, "", self._position, POLL_ROWS)
            self._measure(page)
            self._position, is_full = page.cursor.position, page.is_full
            if page.changes:
                await self._push(page.changes)
        self._time, self._polled = page.now, time.monotonic()

    async def _push(self, changes: Sequence[Change]) -> None:
        """Pass changes on to the watchers, some at a time: they all send in the next tick."""
        of_salon: defaultdict[str, list[Change]] = defaultdict(list)
        for change in changes:
            of_salon[change.salon_id].append(change)
        pushed = 0
        for watcher in list(self._watchers):
            if new := of_salon.get(watcher.salon_id) if watcher.salon_id else changes:
                watcher.push(new)
                pushed += 1
                if not pushed % PUSHED_AT_ONCE:
                    await asyncio.sleep(0)

    async def _missed(self, salon_id: str, cursor: Cursor | None) -> ChangePage:
        """Return the changes after a cursor, up to a page; without a cursor, none, and that of now."""
        async with self._reads, self._database.connection() as conn:
            if cursor is None:
                return await self.table.latest(conn)
            return await self.table.read(conn, salon_id, cursor, POLL_ROWS)

    def _require_recent_poll(self) -> None:
        """Raise DatabaseUnavailable if nothing could be read for STALE_SECONDS."""
        if time.monotonic() - self._polled > STALE_SECONDS:
            raise DatabaseUnavailable

    def _measure(self, page: ChangePage) -> None:
        self._delay, self._measured = page.delay, time.monotonic()

    def _reply(self, salon_id: str, cursor: Cursor, change: bytes | None = None) -> bytes:
        token = encode_repeated([self.table.token(salon_id, cursor).encode()], 2)
        return token if change is None else encode_repeated([change]) + token
