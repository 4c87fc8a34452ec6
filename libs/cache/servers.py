"""Where the cache is kept: one server, or the masters of a cluster, found through the one that the URL names.

In a cluster a command may name keys of one hash slot only, even where two slots have the same master. What is rare goes
through redis-py's plain clients, one a server: connecting, and walks over all keys.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ClusterDownError
from redis.maint_notifications import MaintNotificationsConfig

from libs.cache.keys import META, PREFIX
from libs.cache.settings import CacheSettings

SCAN_COUNT = 1000
RUN_ID = PREFIX + "run-id"

Slot: TypeAlias = Callable[[str | bytes], int]


def hash_slot(key: str | bytes) -> int:
    """Return the slot of a key in a cluster."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def only_slot(key: str | bytes) -> int:
    """Return the slot of a key where there is no cluster: all keys share one."""
    return 0


@dataclass(frozen=True, slots=True)
class Node:
    """A server that keeps keys: the only one, or a master of a cluster. `slots` are those that it serves."""

    client: Redis
    slot: Slot
    slots: Collection[int]

    @property
    def run_id_key(self) -> str:
        """The key that says under which run of the server its keys were stored; in a slot that it serves."""
        names = (f"{RUN_ID}{number or ''}" for number in count())
        return next(name for name in names if self.slot(name) in self.slots)

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the names of the keys that match, by the thousand. Raises: RedisError."""
        cursor = 0
        while True:
            answer: Any = await self.client.scan(cursor, match=pattern, count=SCAN_COUNT)
            cursor, names = answer
            if names:
                yield names
            if not cursor:
                return

    async def unlink(self, pattern: str, which: Callable[[bytes], bool]) -> int:
        """Unlink the keys that match and that `which` accepts; return how many there were. Raises: RedisError."""
        unlinked = 0
        async for names in self.scan(pattern):
            lots: dict[int, list[bytes]] = defaultdict(list)
            for name in filter(which, names):
                lots[self.slot(name)].append(name)
            async with self.client.pipeline(transaction=False) as pipeline:
                for lot in lots.values():
                    pipeline.unlink(*lot)
                unlinked += sum(await pipeline.execute())
        return unlinked

    async def drop(self) -> None:
        """Unlink the whole cache; the server may hold other people's keys. Raises: RedisError."""
        await self.unlink(PREFIX + "*", lambda name: not name.startswith(RUN_ID.encode()))


class Servers:
    """All servers of a cache. Who they are is asked anew for each walk, and each time the cache connects."""

    def __init__(self, settings: CacheSettings) -> None:
        """Prepare the client of the server that the URL names; nothing connects yet."""
        self._settings = settings
        self._first = self._client()
        self._masters: dict[tuple[bytes | None, int], Redis] = {}

    async def close(self) -> None:
        """Close the connections."""
        for client in (self._first, *self._masters.values()):
            await client.aclose()

    async def nodes(self) -> list[Node]:
        """Return who serves which slots. Raises: RedisError, also if nobody serves one."""
        if not (await self._first.info("cluster")).get("cluster_enabled"):
            return [Node(self._first, only_slot, range(1))]
        slots: dict[tuple[bytes | None, int], set[int]] = defaultdict(set)
        for first, last, (host, port, *_), *_ in await self._first.cluster("SLOTS"):
            slots[host, port].update(range(first, last + 1))
        if sum(map(len, slots.values())) < REDIS_CLUSTER_HASH_SLOTS:
            raise ClusterDownError("a hash slot has no server")
        return [Node(self._master(*address), hash_slot, served) for address, served in slots.items()]

    def _master(self, host: bytes | None, port: int) -> Redis:
        """Return the client of a master; one that can't tell its host is where the first server is."""
        if (host, port) not in self._masters:
            self._masters[host, port] = self._client(port=port, **({"host": host.decode()} if host else {}))
        return self._masters[host, port]

    def _client(self, **address: Any) -> Redis:
        timeout = self._settings.timeout / 1000
        options: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "protocol": 2,
            "driver_info": None,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        return Redis.from_pool(ConnectionPool(**options, **{**parse_url(self._settings.url), **address}))

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the names of all keys that match, by the thousand. Raises: RedisError."""
        for node in await self.nodes():
            async for names in node.scan(pattern):
                yield names

    async def unlink_metas(self, prefix: str = "") -> int:
        """Unlink the metas of every group that a key with this prefix could be in; return how many there were.

        Raises: RedisError.
        """
        meta, start = META.encode(), prefix.encode()

        def is_meant(name: bytes) -> bool:
            return name.startswith(start) or start.startswith(name.removesuffix(meta))

        return await self._unlink(f"{PREFIX}*{META}", is_meant)

    async def _unlink(self, pattern: str, which: Callable[[bytes], bool]) -> int:
        return sum([await node.unlink(pattern, which) for node in await self.nodes()])

    async def infos(self) -> list[dict[str, Any]]:
        """Return each server's own figures. Raises: RedisError."""
        return [await node.client.info() for node in await self.nodes()]
