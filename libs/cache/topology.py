"""Where the cache is kept: one server, or the masters of a cluster, found through any node that is known.

In a cluster a command may name keys of one hash slot only, even where two slots have the same master. redis-py only
connects. All else goes over the one connection that reads use: another one could end at another server.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ClusterDownError, ReadOnlyError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from libs.cache.address import parse_hosts
from libs.cache.keys import META, PREFIX, Tag
from libs.cache.resp import RespConnection
from libs.cache.settings import CacheSettings

SCAN_COUNT = 1000
MOST_KNOWN = 32  # nodes of a cluster that are remembered

Slot: TypeAlias = Callable[[str | bytes], int]
Host: TypeAlias = Mapping[str, Any]


def hash_slot(key: str | bytes) -> int:
    """Return the slot of a key in a cluster."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def only_slot(key: str | bytes) -> int:
    """Return the slot of a key where there is no cluster: all keys share one."""
    return 0


async def ask(wire: RespConnection, *command: str | bytes | int) -> Any:
    """Return a server's reply. Raises: RedisError, OSError."""
    reply = await wire.call(*command)
    if isinstance(reply, OSError | RedisError):
        raise reply
    if isinstance(reply, Exception):
        raise ResponseError(str(reply)) from reply
    return reply


def figures(info: bytes) -> dict[str, str]:
    """Return the lines of INFO by their names."""
    return dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)


def history(info: bytes) -> str:
    """Return the replication history of a master, from INFO: it changes whenever its data may have been replaced.

    Raises: ReadOnlyError if it is a replica.
    """
    lines = figures(info)
    if lines.get("role") != "master":
        raise ReadOnlyError("the server is a replica")
    return lines["master_replid"]


@dataclass(frozen=True, slots=True)
class Node:
    """A server that keeps keys: the only one, or a master of a cluster. `slots` are those that it serves."""

    wire: RespConnection
    slot: Slot
    slots: Collection[int]
    run_id: str
    history: str

    async def check(self) -> None:
        """Return if it is the master that it was, with the same data. Raises: RedisError, OSError."""
        if history(await ask(self.wire, "INFO", "replication")) != self.history:
            raise ResponseError("the server's data were replaced")

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the names of the keys that match, by the thousand. Raises: RedisError, OSError."""
        cursor = b"0"
        while True:
            cursor, names = await ask(self.wire, "SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            if names:
                yield names
            if cursor == b"0":
                return

    async def unlink(self, pattern: str, which: Callable[[bytes], bool]) -> int:
        """Unlink the keys that match and that `which` accepts; return how many there were.

        Raises: RedisError, OSError.
        """
        unlinked = 0
        async for names in self.scan(pattern):
            lots: dict[int, list[bytes]] = defaultdict(list)
            for name in filter(which, names):
                lots[self.slot(name)].append(name)
            for lot in lots.values():
                unlinked += await ask(self.wire, "UNLINK", *lot)
        return unlinked


async def _node(wire: RespConnection, slot: Slot, slots: Collection[int]) -> Node:
    """Return a server that is a master. Raises: RedisError, OSError."""
    run_id = figures(await ask(wire, "INFO", "server"))["run_id"]
    return Node(wire, slot, slots, run_id, history(await ask(wire, "INFO", "replication")))


class Topology:
    """All servers of a cache; `nodes` are those that are connected."""

    def __init__(
        self,
        settings: CacheSettings,
        on_lost: Callable[[Exception], None] = lambda _: None,
        on_push: Callable[[list[Any]], None] = lambda _: None,
    ) -> None:
        """Read the URL; nothing connects yet."""
        self._hosts = parse_hosts(settings.url)
        self._timeout = settings.timeout / 1000
        self._on_lost = on_lost
        self._on_push = on_push
        self._known: list[Host] = []  # nodes of the cluster that it was
        self._wires: list[RespConnection] = []
        self.nodes: list[Node] = []

    def disconnect(self) -> None:
        """Close the connections."""
        for wire in self._wires:
            wire.close()
        self._wires, self.nodes = [], []

    async def connect(self) -> list[Node]:
        """Connect to all servers, through the first host that knows them; return who serves which slots.

        Raises: RedisError, OSError: what the first host that was asked said, or that nobody serves a slot.
        """
        self.disconnect()
        errors: list[Exception] = []
        for host in [*self._hosts, *self._known]:
            try:
                await self._connect_through(host)
                return self.nodes
            except (RedisError, hiredis.HiredisError, OSError) as error:
                errors.append(error)
                self.disconnect()
        raise errors[0]

    async def _connect_through(self, host: Host) -> None:
        """Connect to a server, or to the masters of the cluster that it is a node of."""
        wire = await self._wire(host)
        self._wires.append(wire)
        if figures(await ask(wire, "INFO", "cluster")).get("cluster_enabled") != "1":
            self.nodes = [await _node(wire, only_slot, range(1))]
            return
        slots: dict[tuple[str, int], set[int]] = defaultdict(set)
        known: dict[tuple[str, int], None] = {}
        for first, last, *holders in await ask(wire, "CLUSTER", "SLOTS"):
            # A node that can't tell its host is where this one is.
            master, *_ = places = [
                ((name or b"").decode() or host.get("host", "localhost"), port) for name, port, *_ in holders
            ]
            slots[master].update(range(first, last + 1))
            known |= dict.fromkeys(places)
        if sum(map(len, slots.values())) < REDIS_CLUSTER_HASH_SLOTS:
            raise ClusterDownError("a hash slot has no server")
        self._known = [{**host, "host": name, "port": port} for name, port in list(known)[:MOST_KNOWN]]
        for (name, port), served in slots.items():
            self._wires.append(await self._wire({**host, "host": name, "port": port}))
            self.nodes.append(await _node(self._wires[-1], hash_slot, served))
        self._wires.remove(wire)
        wire.close()

    async def _wire(self, options: Host) -> RespConnection:
        """Connect, as redis-py does."""
        pool: Any = ConnectionPool(
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            protocol=2,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            **options,
        )
        connection = pool.make_connection()
        await connection.connect()
        return RespConnection(connection, self._timeout, self._on_lost, self._on_push)

    def _all(self) -> list[Node]:
        """Return the servers. Raises: RedisError if there is no connection."""
        if not self.nodes:
            raise RedisError("not connected")
        return self.nodes

    async def check(self) -> None:
        """Return if each server is the master that it was, with the same data. Raises: RedisError, OSError."""
        await asyncio.gather(*(node.check() for node in self._all()))

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the names of all keys that match, by the thousand. Raises: RedisError, OSError."""
        for node in self._all():
            async for names in node.scan(pattern):
                yield names

    async def unlink_metas(self, prefix: str = "") -> int:
        """Unlink the metas of every tag that a key with this prefix could be in; return how many there were.

        Raises: RedisError, OSError.
        """
        meta, start = META.encode(), prefix.encode()

        def is_meant(name: bytes) -> bool:
            return name.startswith(start) or start.startswith(name.removesuffix(meta))

        return await self._unlink(f"{PREFIX}*{META}", is_meant)

    async def unlink_parts(self, tags: Sequence[Tag]) -> int:
        """Unlink the metas of all parts of tags; return how many there were. Raises: RedisError, OSError."""
        starts = tuple(f"{tag.name}:".encode() for tag in tags)
        return await self._unlink(f"{PREFIX}*{META}", lambda name: name.startswith(starts))

    async def unlink_entries(self, tag: Tag) -> None:
        """Unlink every entry of a tag, whatever its generation. Raises: RedisError, OSError."""
        literal = re.sub(r"([*?\[\]\\])", r"\\\1", tag.name)
        await self._unlink(literal + "*", lambda name: name != tag.meta.encode())

    async def _unlink(self, pattern: str, which: Callable[[bytes], bool]) -> int:
        return sum([await node.unlink(pattern, which) for node in self._all()])

    async def infos(self) -> list[dict[str, str]]:
        """Return each server's own figures. Raises: RedisError, OSError."""
        return [figures(await ask(node.wire, "INFO")) for node in self._all()]
