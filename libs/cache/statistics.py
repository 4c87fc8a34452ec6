"""What the cache of a process did, and what it finds on the server."""

from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from libs.cache.keys import PREFIX
from libs.cache.settings import NAMESPACES, CacheSettings
from libs.cache.store import Store
from libs.cache.topology import Topology


@dataclass(slots=True)
class Counters:
    """Reads and writes of a process since it started; `near` are those of the hits that needed no server."""

    hits: int = 0
    near: int = 0
    misses: int = 0
    bypasses: int = 0
    sets: int = 0
    invalidations: int = 0
    refused_fills: int = 0
    refreshes: int = 0
    warmed: int = 0
    warmed_hits: int = 0


async def drop(url: str) -> None:
    """Drop the whole cache, after rows were written by something that registers nothing.

    Raises: RedisError, OSError.
    """
    servers = Topology(CacheSettings(url=url))
    try:
        await servers.connect()
        await servers.unlink_metas()
    finally:
        servers.disconnect()


async def server_figures(store: Store) -> dict[str, Any]:
    """Return `connected`, `uptime` in s and `memory` for people, as the predecessor named them.

    In a cluster the time is since a server last started, and the memory that of all.
    """
    try:
        infos = await store.servers.infos()
    except (RedisError, OSError):
        return {"connected": False}
    megabytes = sum(int(info["used_memory"]) for info in infos) / 2**20
    uptime = min(int(info["uptime_in_seconds"]) for info in infos)
    return {"connected": store.ready, "uptime": uptime, "memory": f"{megabytes:.2f}MB"}


async def sizes(store: Store, settings: CacheSettings) -> dict[str, int]:
    """Return the number of entries of each namespace, of all services; of a large cache up to a minute old.

    Nothing if it is away.
    """
    names = {settings.namespace(name).prefix: name for name in NAMESPACES}
    try:
        counted = await store.walk.sizes()
    except (RedisError, OSError):
        return {}
    found = {names.get(prefix, prefix.removeprefix(PREFIX)[:-1]): count for prefix, count in counted.items()}
    return dict.fromkeys(NAMESPACES, 0) | found
