"""What the cache of a process did, and figures of its servers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from libs.cache.keys import PREFIX, Namespace
from libs.cache.settings import CacheSettings
from libs.cache.store import Store
from libs.cache.topology import Topology


@dataclass(slots=True)
class Counters:
    """Reads and writes of a process since it started. `near` hits are also counted as `hits`."""

    hits: int = 0
    near: int = 0
    misses: int = 0
    bypasses: int = 0
    sets: int = 0
    invalidations: int = 0
    refused_fills: int = 0
    refreshes: int = 0
    replica_loads: int = 0
    replica_behind: int = 0
    refills: int = 0
    refill_hits: int = 0


async def drop(url: str) -> None:
    """Drop the whole cache, after rows were written without registering. Raises: RedisError, OSError."""
    topology = Topology(CacheSettings(url=url))
    try:
        await topology.connect()
        await topology.drop()
    finally:
        topology.disconnect()


async def server_figures(store: Store) -> dict[str, Any]:
    """Return `connected`, `uptime` in s and `memory` as a text in MB.

    In a cluster the uptime is the shortest, and the memory the sum.
    """
    try:
        infos = await store.topology.infos()
    except (RedisError, OSError):
        return {"connected": False}
    megabytes = sum(int(info["used_memory"]) for info in infos) / 2**20
    uptime = min(int(info["uptime_in_seconds"]) for info in infos)
    return {"connected": store.ready, "uptime": uptime, "memory": f"{megabytes:.2f}MB"}


async def sizes(store: Store, namespaces: Iterable[Namespace]) -> dict[str, int]:
    """Return the number of entries of each namespace, of all services; of a large cache up to a minute old.

    Empty if there is no connection.
    """
    names = {namespace.prefix: namespace.name for namespace in namespaces}
    try:
        counted = await store.keyspace.sizes()
    except (RedisError, OSError):
        return {}
    found = {names.get(prefix, prefix.removeprefix(PREFIX)[:-1]): count for prefix, count in counted.items()}
    return dict.fromkeys(names.values(), 0) | found
