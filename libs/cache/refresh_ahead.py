"""Loads entries before callers need them.

An entry that is hit late in its TTL is loaded again behind the reply (`is_due`). An entry that this process's own write
has invalidated is loaded again soon after the commit, if callers read it between most writes (`Refiller`).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from libs.cache.keys import Key
from libs.cache.reply import LoadOne, Read, Reply
from libs.cache.statistics import Counters

# At once, up to half of the fills would be refused: transactions that began before the commit are still open.
DELAY_SECONDS = 0.01
MOST_AT_ONCE = 64  # entries that are loaded again at the same time: one statement of each kind
MOST_OF_A_TAG = 256  # entries that are known; a write looks at all of its tag
LEAST_SHARE = 0.5  # of the times between two writes in which the entry was read
WEIGHT = 0.3  # of the last time in that share


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
class _Known:
    """An entry that callers missed: how to load it, and how often it is read between two writes."""

    read: Read
    share: float = LEAST_SHARE
    is_read: bool = True  # since the last write


class Refiller:
    """Loads entries again after this process's writes: at most `count` entries are known; 0 is none.

    `load` loads an entry that is not cached, and returns whether it did and the entry may be stored. MOST_AT_ONCE are
    loaded at a time. Reads with a limited number of connections, such as searches, are not loaded again: they are
    expensive and seldom repeated. `unread` has the entries that were loaded again and not hit
    since: their first hit is a miss that was saved.
    """

    def __init__(self, count: int, counters: Counters, load: Callable[[Read], Awaitable[bool]]) -> None:
        """Know nothing yet."""
        self.unread: set[str] = set()
        self._count = count
        self._counters = counters
        self._load = load
        self._known: OrderedDict[str, _Known] = OrderedDict()  # by entry, the latest miss last
        self._of_tag: dict[str, OrderedDict[str, None]] = {}  # entries by version key, the latest miss last
        self._due: dict[str, Read] = {}
        self._task: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def settle(self) -> None:
        """Wait for the loads that are due or under way now."""
        if self._task:
            await asyncio.wait([self._task])

    def missed(self, read: Read) -> None:
        """Note a miss."""
        if not self._count or (isinstance(read.load, LoadOne) and read.load.connect):
            return
        name = read.key.entry
        names = self._of_tag.setdefault(read.key.tag.version_key, OrderedDict())
        known = self._known.setdefault(name, _Known(read))
        known.read, known.is_read = read, True
        names[name] = None
        for order in (self._known, names):
            order.move_to_end(name)
        self.unread.discard(name)
        if len(names) > MOST_OF_A_TAG:
            self._forget(next(iter(names)))
        if len(self._known) > self._count:
            self._forget(next(iter(self._known)))

    def hit(self, key: Key) -> None:
        """Note the first hit on an `unread` entry."""
        self._counters.refill_hits += 1
        self.unread.discard(key.entry)
        if known := self._known.get(key.entry):
            known.is_read = True

    def written(self, version_keys: Iterable[str]) -> None:
        """Note a commit: load the entries of these tags again that are read often enough."""
        for version_key in version_keys:
            for name in self._of_tag.get(version_key, ()):
                known = self._known[name]
                known.share += WEIGHT * (known.is_read - known.share)
                known.is_read = False
                self.unread.discard(name)
                if known.share >= LEAST_SHARE:
                    self._due[name] = known.read
        if self._due and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._due:
                await asyncio.sleep(DELAY_SECONDS)
                due = [self._due.popitem()[1] for _ in range(min(MOST_AT_ONCE, len(self._due)))]  # the latest first
                await asyncio.gather(*map(self._refill, due))
        finally:
            self._task = None

    async def _refill(self, read: Read) -> None:
        with suppress(Exception):  # the next read loads it, and gets the error if there is one
            if await self._load(read):
                self._counters.refills += 1
                if read.key.entry in self._known:
                    self.unread.add(read.key.entry)

    def _forget(self, name: str) -> None:
        version_key = self._known.pop(name).read.key.tag.version_key
        del self._of_tag[version_key][name]
        if not self._of_tag[version_key]:
            del self._of_tag[version_key]
        self.unread.discard(name)
