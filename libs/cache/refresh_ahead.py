"""Refresh-ahead: loads entries before callers need them.

An entry that is hit late in its TTL is loaded again behind the reply (`is_due`). The warmer also remembers which
entries callers missed: one that was missed more than once is loaded again when it is gone, with the caller's own load.
An entry that was loaded and not read before it was gone again is forgotten until its next miss.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from cachetools import FIFOCache

from libs.cache.keys import Key
from libs.cache.reply import Read, Reply
from libs.cache.statistics import Counters

WARMING: ContextVar[bool] = ContextVar("warming", default=False)

OFTEN = 2  # misses after which an entry is worth loading ahead (measured, decision 0023)
CHECK_SECONDS = 1.0  # checks at least this often, since other processes invalidate, too,
MIN_CHECK_SECONDS = 0.1  # and at most this often
PATIENCE_SECONDS = 0.1  # longest time that a load waits for RPCs to end


def is_due(key: Key, reply: Reply) -> bool:
    """Return whether a hit is old enough to be loaded again behind its reply.

    That is at its share of the TTL or somewhat later (with 0.6 up to 0.72). Each process has a different moment for
    each key: mostly one process loads it, and not all keys are loaded at once.
    """
    ttl, share = key.tag.namespace.ttl, key.tag.namespace.refresh
    if share >= 1 or reply.body is None or reply.age_ms < ttl * share * 1000:
        return False
    return reply.age_ms >= ttl * 1000 * share * (1 + (1 - share) / 2 * (hash(key.entry) % 256 / 256))


@dataclass(slots=True)
class _Asked:
    """An entry that callers missed: how to load it, and how often it was missed."""

    read: Read
    misses: int


class Warmer:
    """Loads ahead: at most `count` entries, one at a time, when no RPC is under way.

    `gone` returns which keys are not cached; `load` loads one; `busy` returns whether RPCs are under way. `unasked`
    names the entries that were loaded ahead and not hit since.
    """

    def __init__(
        self,
        count: int,
        counters: Counters,
        gone: Callable[[Sequence[Key]], Awaitable[Sequence[bool]]],
        load: Callable[[Read], Awaitable[Any]],
    ) -> None:
        """Prepare; nothing runs before `open`."""
        self.busy: Callable[[], bool] = lambda: False
        self.unasked: set[str] = set()
        self._asked: FIFOCache[str, _Asked] | None = FIFOCache(count) if count else None
        self._counters = counters
        self._gone = gone
        self._load = load
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start checking for missing entries."""
        if self._asked is not None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    def missed(self, read: Read) -> None:
        """Note a miss."""
        if self._asked is not None:
            entry = read.key.entry
            known = self._asked.get(entry)
            self._asked[entry] = _Asked(read, known.misses + 1 if known else 1)  # which also makes it the newest
            self.unasked.discard(entry)
            self._wake.set()

    def hit(self, key: Key) -> None:
        """Note the first hit on an `unasked` entry: a miss was avoided."""
        self._counters.warmed_hits += 1
        self.unasked.discard(key.entry)

    def warmed(self, read: Read, *, stored: bool) -> None:
        """Note an entry that was loaded ahead; one that may not be stored is tried again at the next check."""
        if self._asked is not None:
            self._asked[read.key.entry] = _Asked(read, OFTEN)
            if stored:
                self._counters.warmed += 1
                self.unasked.add(read.key.entry)

    async def expect(self, reads: Iterable[Callable[[], Awaitable[Any]]]) -> None:
        """Make reads that callers are expected to make, as the RPCs make them; failures are ignored."""
        if self._asked is None:
            return
        token = WARMING.set(True)
        for read in reads:
            await self._idle()
            with suppress(Exception):
                await read()
        WARMING.reset(token)

    async def check(self) -> None:
        """Load missing entries that were missed often; forget those loaded in vain. Raises: StoreAway."""
        if self._asked is None:
            return
        often = [asked for asked in self._asked.values() if asked.misses >= OFTEN]
        are_gone = await self._gone([asked.read.key for asked in often]) if often else []
        for asked, gone in zip(often, are_gone, strict=True):
            name = asked.read.key.entry
            if gone and name in self.unasked:
                self._asked.pop(name, None)
            elif gone:
                await self._idle()
                with suppress(Exception):
                    await self._load(asked.read)
        self.unasked &= set(self._asked)

    async def _idle(self) -> None:
        """Wait until no RPC is under way, but not forever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self.busy():  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.002)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(MIN_CHECK_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            with suppress(Exception):  # without Redis there is nothing to store
                await self.check()
