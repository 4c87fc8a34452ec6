"""Where the cache is kept: one server, the one that Sentinels name, or the masters of a cluster.

Sentinels are asked in the order of the URL, so that all processes ask the same one first. A cluster is found through
any node that is known. In a cluster a command may only name keys of one hash slot. Each server has one connection, for
reads and everything else: a second one could end at another server.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

import hiredis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ClusterDownError, ConnectionError, ReadOnlyError, RedisError, ResponseError
from redis.sentinel import MasterNotFoundError

from libs.cache.address import Host, parse_address
from libs.cache.keys import PREFIX, VERSION_SUFFIX
from libs.cache.resp import DEFAULT_PORT, RespConnection, ask, connect
from libs.cache.settings import CacheSettings

SCAN_COUNT = 1000
MAX_KNOWN = 32  # nodes of a cluster that are remembered

Slot: TypeAlias = Callable[[str | bytes], int]


def hash_slot(key: str | bytes) -> int:
    """Return the slot of a key in a cluster."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def only_slot(key: str | bytes) -> int:
    """Return the slot of a key on a single server: all keys share slot 0."""
    return 0


@dataclass(frozen=True, slots=True)
class Node:
    """A server that keeps keys: the only one, or a master of a cluster. It serves `slots`."""

    connection: RespConnection
    slot: Slot
    slots: Collection[int]
    run_id: str
    history: str

    @classmethod
    async def of(cls, connection: RespConnection, slot: Slot, slots: Collection[int]) -> "Node":
        """Ask a server who it is. Raises: ReadOnlyError if it is a replica; RedisError, OSError."""
        run_id = parse_info(await ask(connection, "INFO", "server"))["run_id"]
        return cls(connection, slot, slots, run_id, replication_id(await ask(connection, "INFO", "replication")))

    async def check(self) -> None:
        """Return if the server is still a master with the same data. Raises: RedisError, OSError."""
        if replication_id(await ask(self.connection, "INFO", "replication")) != self.history:
            raise ResponseError("the server's data were replaced")

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the names of the keys that match, by the thousand. Raises: RedisError, OSError."""
        cursor = b"0"
        while True:
            cursor, names = await ask(self.connection, "SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            if names:
                yield names
            if cursor == b"0":
                return


class Topology:
    """All servers of a cache; `nodes` are those that are connected."""

    def __init__(
        self,
        settings: CacheSettings,
        on_lost: Callable[[Exception], None] = lambda _: None,
        on_push: Callable[[list[Any]], None] = lambda _: None,
    ) -> None:
        """Read the URL; nothing connects yet."""
        self.nodes: list[Node] = []
        self._address = parse_address(settings.url)
        self._timeout = settings.timeout / 1000
        self._on_lost = on_lost
        self._on_push = on_push
        self._known: list[Host] = []  # nodes of the cluster at the last connection
        self._connections: list[RespConnection] = []

    async def connect(self) -> list[Node]:
        """Connect to all servers, through the first host that works; return them with their slots.

        Raises: RedisError, OSError: the error of the only host of the URL, or of each.
        """
        self.disconnect()
        errors: list[Exception] = []
        for host in [*self._address.hosts, *self._known]:
            try:
                await self._connect_through(await self._master_of(host) if self._address.name else host)
                return self.nodes
            except (RedisError, hiredis.HiredisError, OSError) as error:
                errors.append(error)
                self.disconnect()
        if len(self._address.hosts) == 1:
            raise errors[0]
        raise ConnectionError("; ".join(map(_describe, self._address.hosts, errors)))

    def disconnect(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()
        self._connections, self.nodes = [], []

    async def _master_of(self, sentinel: Host) -> Host:
        """Return the master that a Sentinel names. Raises: RedisError, OSError."""
        connection = await connect(sentinel, self._timeout)
        try:
            found = await ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.name)
        finally:
            connection.close()
        if found is None:
            raise MasterNotFoundError(f"this Sentinel knows no master named {self._address.name!r}")
        return {**self._address.master, "host": found[0].decode(), "port": int(found[1])}

    async def _connect_through(self, host: Host) -> None:
        """Connect to a server, or to the masters of the cluster that it belongs to."""
        connection = await self._connect(host)
        if parse_info(await ask(connection, "INFO", "cluster")).get("cluster_enabled") != "1":
            self.nodes = [await Node.of(connection, only_slot, range(1))]
            return
        slots: dict[tuple[str, int], set[int]] = defaultdict(set)
        known: dict[tuple[str, int], None] = {}
        for first, last, *holders in await ask(connection, "CLUSTER", "SLOTS"):
            # A node that can't name its host has the host of this one.
            master, *_ = places = [
                ((name or b"").decode() or host.get("host", "localhost"), port) for name, port, *_ in holders
            ]
            slots[master].update(range(first, last + 1))
            known |= dict.fromkeys(places)
        if sum(map(len, slots.values())) < REDIS_CLUSTER_HASH_SLOTS:
            raise ClusterDownError("a hash slot has no server")
        self._known = [{**host, "host": name, "port": port} for name, port in list(known)[:MAX_KNOWN]]
        for (name, port), served in slots.items():
            master_connection = await self._connect({**host, "host": name, "port": port})
            self.nodes.append(await Node.of(master_connection, hash_slot, served))
        self._connections.remove(connection)
        connection.close()

    async def _connect(self, host: Host) -> RespConnection:
        connection = await connect(host, self._timeout)
        connection.on_lost, connection.on_push = self._on_lost, self._on_push
        self._connections.append(connection)
        return connection

    def _all(self) -> list[Node]:
        """Return the servers. Raises: RedisError if there is no connection."""
        if not self.nodes:
            raise RedisError("not connected")
        return self.nodes

    async def check(self) -> None:
        """Return if each server is still a master with the same data. Raises: RedisError, OSError."""
        await asyncio.gather(*(node.check() for node in self._all()))

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """Yield the names of all keys that match, by the thousand. Raises: RedisError, OSError."""
        for node in self._all():
            async for names in node.scan(pattern):
                yield names

    async def drop(self) -> None:
        """Delete all version records, so that no entry counts. Raises: RedisError, OSError."""
        for node in self._all():
            async for names in node.scan(f"{PREFIX}*{VERSION_SUFFIX}"):
                by_slot: dict[int, list[bytes]] = defaultdict(list)
                for name in names:
                    by_slot[node.slot(name)].append(name)
                for group in by_slot.values():
                    await ask(node.connection, "UNLINK", *group)

    async def infos(self) -> list[dict[str, str]]:
        """Return the INFO of each server. Raises: RedisError, OSError."""
        return [parse_info(await ask(node.connection, "INFO")) for node in self._all()]


def parse_info(info: bytes) -> dict[str, str]:
    """Return the lines of INFO by their names."""
    return dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)


def replication_id(info: bytes) -> str:
    """Return the replication ID of a master, from INFO. It changes whenever its data may have been replaced.

    Raises: ReadOnlyError if the server is a replica.
    """
    lines = parse_info(info)
    if lines.get("role") != "master":
        raise ReadOnlyError("the server is a replica")
    return lines["master_replid"]


def reason(error: BaseException) -> str:
    """Return the innermost text of an error: that of the server, TLS or the system."""
    found: BaseException | None = error
    while found is not None:
        if str(found):  # a timeout has a CancelledError in it, without a text
            error = found
        found = found.__cause__ or found.__context__
    return str(error) or type(error).__name__


def _describe(host: Host, error: Exception) -> str:
    return f"{host.get('host', 'localhost')}:{host.get('port', DEFAULT_PORT)}: {reason(error)}"
