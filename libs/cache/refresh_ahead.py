"""Loads ahead of the callers who will ask: what is hit and about to end, and what is gone and is asked for often.

A process remembers what its callers missed. What was missed more than once is looked for, behind the replies, and
loaded again if it is gone: by the load that the caller brought. What was loaded in vain, since nobody asked before it
was gone again, is forgotten until it is missed anew.
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

OFTEN = 2  # misses after which it is worth a load that nobody asked for (measured, decision 0023)
LOOK_SECONDS = 1.0  # others invalidate too: look so often at least,
SHORTEST_LOOK_SECONDS = 0.1  # and no more often than this, however much is missed
PATIENCE_SECONDS = 0.1  # longest time for which a load gives way to RPCs


def is_due(key: Key, reply: Reply) -> bool:
    """Say whether a hit is old enough to be loaded again behind its reply.

    That is at its share of the TTL or somewhat later (of 0.6 up to 0.72): each process has its own moment for each key,
    so that mostly one of them does it, and not for all keys at once.
    """
    ttl, share = key.tag.namespace.ttl, key.tag.namespace.refresh
    if share >= 1 or reply.body is None or reply.age_ms < ttl * share * 1000:
        return False
    return reply.age_ms >= ttl * 1000 * share * (1 + (1 - share) / 2 * (hash(key.entry) % 256 / 256))


@dataclass(slots=True)
class _Asked:
    """What callers missed: how to load it, and how often it was missed."""

    read: Read
    misses: int


class Warmer:
    """What a process loads for nobody yet: at most `count` entries, one at a time, and after the RPCs under way.

    `gone` says which keys are not cached; `load` loads one. `busy` says whether RPCs are under way. `unasked` names the
    entries that were loaded and not hit since.
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
        """Begin to look for what is gone."""
        if self._asked is not None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    def missed(self, read: Read) -> None:
        """Note what a caller had to wait for."""
        if self._asked is not None:
            entry = read.key.entry
            known = self._asked.get(entry)
            self._asked[entry] = _Asked(read, known.misses + 1 if known else 1)  # and it is the newest
            self.unasked.discard(entry)
            self._wake.set()

    def hit(self, key: Key) -> None:
        """Note the first hit on what is `unasked`: a miss saved."""
        self._counters.warmed_hits += 1
        self.unasked.discard(key.entry)

    def warmed(self, read: Read, *, stored: bool) -> None:
        """Note what was loaded for nobody yet; if it may not be stored, the next look tries again."""
        if self._asked is not None:
            self._asked[read.key.entry] = _Asked(read, OFTEN)
            if stored:
                self._counters.warmed += 1
                self.unasked.add(read.key.entry)

    async def expect(self, reads: Iterable[Callable[[], Awaitable[Any]]]) -> None:
        """Read what will be asked for, by the RPCs' own ways; what fails is left to its callers."""
        if self._asked is None:
            return
        token = WARMING.set(True)
        for read in reads:
            await self._idle()
            with suppress(Exception):
                await read()
        WARMING.reset(token)

    async def look(self) -> None:
        """Load again what is gone and was missed often; forget what was loaded in vain. Raises: StoreAway."""
        if self._asked is None:
            return
        often = [asked for asked in self._asked.values() if asked.misses >= OFTEN]
        for asked, gone in zip(often, await self._gone([asked.read.key for asked in often]), strict=True):
            name = asked.read.key.entry
            if gone and name in self.unasked:
                self._asked.pop(name, None)
            elif gone:
                await self._idle()
                with suppress(Exception):
                    await self._load(asked.read)
        self.unasked &= set(self._asked)

    async def _idle(self) -> None:
        """Give way to the RPCs under way, but not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self.busy():  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.002)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SHORTEST_LOOK_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            with suppress(Exception):  # Redis is away: there is nothing to load for
                await self.look()
