"""Scans of all keys of the cache: for invalidations by hand, and to count entries.

A scan takes about a second for a million keys. A process runs one at a time, and all calls made before it begins share
it. A large count is kept for a minute.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from libs.cache.batcher import Batcher
from libs.cache.keys import PREFIX, VERSION_SUFFIX, Tag
from libs.cache.lease import now
from libs.cache.topology import Topology

LARGE = 10_000  # keys
KEPT_SECONDS = 60

_SUFFIX = VERSION_SUFFIX.encode()


class Unlink(NamedTuple):
    """Which keys to unlink: those that begin with `start`, except `spared`; perhaps version records only.

    `with_wider`: also the records of tags whose name is the beginning of `start`.
    """

    start: bytes
    spared: bytes = b""
    only_records: bool = True
    with_wider: bool = False

    def matches(self, name: bytes) -> bool:
        """Return whether to unlink a key."""
        if not name.endswith(_SUFFIX):
            return not self.only_records and name.startswith(self.start)
        if self.with_wider and self.start.startswith(name.removesuffix(_SUFFIX)):
            return True
        return name.startswith(self.start) and name != self.spared


def tags(prefix: str) -> Unlink:
    """Match the version records of every tag that a key with this prefix could have."""
    return Unlink(prefix.encode(), with_wider=True)


def sub_tags(tag: Tag) -> Unlink:
    """Match the version records of all sub-tags of a tag."""
    return Unlink(f"{tag.name}:".encode())


def entries(tag: Tag) -> Unlink:
    """Match all keys of a tag but its own version record."""
    return Unlink(tag.name.encode(), spared=tag.version_key.encode(), only_records=False)


class KeyspaceScan:
    """The scans of one process. `unlink` unlinks keys by their names."""

    def __init__(
        self, topology: Topology, batcher: Batcher, unlink: Callable[[Sequence[bytes]], Awaitable[None]]
    ) -> None:
        """Prepare; nothing is scanned yet."""
        self._topology = topology
        self._batcher = batcher
        self._unlink = unlink
        self._sizes = Counter[str]()
        self._kept_until = 0.0

    async def unlink(self, *matchers: Unlink) -> list[int]:
        """Unlink keys; return how many keys each matched. Raises: StoreAway, RedisError, OSError."""
        found: list[int] = await asyncio.gather(
            *(self._batcher.ask("unlink", matcher, self._unlink_all) for matcher in matchers)
        )
        return found

    async def sizes(self) -> Counter[str]:
        """Return the number of entries by the prefix of their namespace. Raises: RedisError, OSError."""
        if now() >= self._kept_until:
            await self._batcher.ask("sizes", None, self._count)
        return self._sizes

    async def _unlink_all(self, matchers: Sequence[Unlink]) -> list[int]:
        found = [0] * len(matchers)
        only_records = all(matcher.only_records for matcher in matchers)
        async for names in self._topology.scan(f"{PREFIX}*{VERSION_SUFFIX}" if only_records else f"{PREFIX}*"):
            matched = []
            for name in names:
                if places := [place for place, matcher in enumerate(matchers) if matcher.matches(name)]:
                    matched.append(name)
                    for place in places:
                        found[place] += 1
            if matched:
                await self._unlink(matched)
        return found

    async def _count(self, _: Sequence[None]) -> list[None]:
        sizes = Counter[str]()
        keys = 0
        async for names in self._topology.scan(PREFIX + "*"):
            keys += len(names)
            for name in names:
                namespace, colon, _rest = name.decode(errors="replace").removeprefix(PREFIX).partition(":")
                if colon and not name.endswith(_SUFFIX):
                    sizes[f"{PREFIX}{namespace}:"] += 1
        self._sizes = sizes
        self._kept_until = now() + KEPT_SECONDS if keys > LARGE else 0.0
        return [None]
