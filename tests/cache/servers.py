"""Direct clients of the servers of a cache: a single server, or those of a cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import redis

from ops.servers import Valkey
from tests.conftest import PASSWORD, USER
from tools.cluster import Cluster

CacheServer: TypeAlias = Valkey | Cluster


def nodes(server: CacheServer) -> list[Valkey]:
    """Return the nodes of a server or cluster."""
    return server.nodes if isinstance(server, Cluster) else [server]


def each(url: str) -> Iterator[Any]:
    """Yield a client of each server, for work on all of them: walking over keys, configuration."""
    with redis.Redis.from_url(url) as client:
        if not is_cluster(client):
            yield client
            return
        ranges: Any = client.execute_command("CLUSTER SLOTS")
    for host, port in sorted({(host.decode(), port) for _, _, (host, port, *_) in ranges}):
        with redis.Redis(host, port) as client:
            yield client


@contextmanager
def reaching(url: str) -> Iterator[Any]:
    """Return a client that finds the server of any key. If the URL has the user of the cache, it may do everything."""
    url = url.replace(f"{USER}:{PASSWORD}@", "")
    with redis.Redis.from_url(url) as client:
        clustered = is_cluster(client)
    with (redis.RedisCluster if clustered else redis.Redis).from_url(url) as client:
        yield client


def is_cluster(client: redis.Redis) -> bool:
    """Return whether a server belongs to a cluster."""
    info: Any = client.info("cluster")
    return bool(info["cluster_enabled"])
