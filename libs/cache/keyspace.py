"""Walks over all keys of the cache: for what is invalidated by hand, and to count entries.

A walk takes about a second for a million keys, so that a process does one at a time, and all calls that come before it
begins share it. A large count is kept for a minute.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from libs.cache.batcher import Batcher
from libs.cache.keys import META, PREFIX, Tag
from libs.cache.lease import now
from libs.cache.topology import Topology

LARGE = 10_000  # keys
KEPT_SECONDS = 60

_META = META.encode()


class Unlink(NamedTuple):
    """Which keys are to be unlinked: those that begin with one of two texts, or only the metas among them."""

    start: bytes
    spared: bytes = b""
    only_metas: bool = True
    with_wider: bool = False

    def means(self, name: bytes) -> bool:
        """Say whether a key is meant."""
        if not name.endswith(_META):
            return not self.only_metas and name.startswith(self.start)
        if self.with_wider and self.start.startswith(name.removesuffix(_META)):
            return True
        return name.startswith(self.start) and name != self.spared


def metas(prefix: str) -> Unlink:
    """Return the metas of every tag that a key with this prefix could be in."""
    return Unlink(prefix.encode(), with_wider=True)


def parts(tag: Tag) -> Unlink:
    """Return the metas of all parts of a tag."""
    return Unlink(f"{tag.name}:".encode())


def entries(tag: Tag) -> Unlink:
    """Return all of a tag but its own meta."""
    return Unlink(tag.name.encode(), spared=tag.meta.encode(), only_metas=False)


class Walk:
    """The walks of one process; `unlink` unlinks keys by their names and returns how many there were."""

    def __init__(
        self, servers: Topology, gather: Batcher, unlink: Callable[[Sequence[bytes]], Awaitable[None]]
    ) -> None:
        """Prepare; nothing is asked yet."""
        self._servers = servers
        self._batcher = gather
        self._unlink = unlink
        self._sizes = Counter[str]()
        self._kept_until = 0.0

    async def unlink(self, *what: Unlink) -> list[int]:
        """Unlink keys; return of each how many there were. Raises: StoreAway, RedisError, OSError."""
        found: list[int] = await asyncio.gather(*(self._batcher.ask("unlink", each, self._unlink_all) for each in what))
        return found

    async def sizes(self) -> Counter[str]:
        """Return the number of entries by the prefix of their namespace. Raises: RedisError, OSError."""
        if now() >= self._kept_until:
            await self._batcher.ask("sizes", None, self._count)
        return self._sizes

    async def _unlink_all(self, what: Sequence[Unlink]) -> list[int]:
        found = [0] * len(what)
        pattern = f"{PREFIX}*{META}" if all(each.only_metas for each in what) else f"{PREFIX}*"
        async for names in self._servers.scan(pattern):
            meant = []
            for name in names:
                if places := [place for place, each in enumerate(what) if each.means(name)]:
                    meant.append(name)
                    for place in places:
                        found[place] += 1
            if meant:
                await self._unlink(meant)
        return found

    async def _count(self, _: Sequence[None]) -> list[None]:
        counted = Counter[str]()
        keys = 0
        async for names in self._servers.scan(PREFIX + "*"):
            keys += len(names)
            for name in names:
                word, colon, _rest = name.decode(errors="replace").removeprefix(PREFIX).partition(":")
                if colon and not name.endswith(_META):
                    counted[f"{PREFIX}{word}:"] += 1
        self._sizes = counted
        self._kept_until = now() + KEPT_SECONDS if keys > LARGE else 0.0
        return [None]
