"""Processes with a near cache."""

import asyncio
from dataclasses import dataclass
from time import monotonic

from libs.cache import Reply
from tests.cache.shop import Shop, Start
from tools.proxy import Proxy

PUSH = b">2\r\n$10\r\ninvalidate"
LEASE_MS = 60
LEASE = LEASE_MS / 1000


async def near(start: Start, lease_ms: int = 60_000, size: int = 1) -> Shop:
    """Start a process of the shop with a near cache."""
    return await start(near=["shop"], near_lease=lease_ms, near_size=size)


@dataclass(frozen=True)
class Single:
    """Starts processes on one server; those with a near cache connect through a proxy."""

    start: Start
    between: Proxy

    async def near(self, lease_ms: int = 60_000) -> Shop:
        """Start a process with a near cache behind the proxy."""
        url = f"redis://127.0.0.1:{self.between.port}"
        return await near(Start(self.start.exits, self.start.pool, url, timeout=90), lease_ms)


async def kept(shop: Shop, name: str = "tea") -> Reply:
    """Read until the reply comes from the near cache."""
    async with asyncio.timeout(10):
        while True:
            reply = await shop.read(name)
            if reply.source == "near":
                return reply
            await shop.cache.settle()


class Clock:
    """How far the replies of a reader were behind the acknowledged writes, in s."""

    def __init__(self) -> None:
        """Begin without writes."""
        self.written: list[float] = []
        self.furthest = 0.0
        self.sources: set[str] = set()

    async def write(self, shop: Shop) -> None:
        """Write the next number."""
        await shop.write(str(len(self.written)))
        self.written.append(monotonic())

    async def read(self, shop: Shop) -> None:
        """Read, and record how long ago the next number was written."""
        began = monotonic()
        reply = await shop.read()
        self.sources.add(reply.source)
        following = int(reply.body or b"") + 1
        if following < len(self.written):
            self.furthest = max(self.furthest, began - self.written[following])
