"""A cluster whose masters have replicas: nodes that die, especially the one named in REDIS_URL."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from psycopg_pool import AsyncConnectionPool
from structlog.testing import capture_logs

from ops.servers import Valkey
from tests.cache.outages import ready, rows
from tests.cache.shop import Shop, Start, until
from tests.conftest import WITH_USER, valkey_binary
from tests.sentinels import hosts, is_master
from tools.cluster import Cluster

POLL = 200  # ms
SHELVES = [f"shelf {number}" for number in range(10)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three masters, each with a replica that takes over after a second."""
    with Cluster(binary=valkey_binary(), replicated=True, node_timeout_ms=1000, options=WITH_USER) as cluster:
        yield cluster


@pytest.fixture
async def start(pool: AsyncConnectionPool, cluster: Cluster) -> AsyncIterator[Start]:
    """Starts processes whose URL names the first node."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, cluster.url, timeout=500)


async def fail_over(cluster: Cluster, place: int) -> None:
    """Kill a master, and return when its replica has taken over."""
    cluster.masters[place].kill()
    await until(lambda: is_master(cluster.replicas[place]))


async def hits(shop: Shop) -> bool:
    """Return whether all shelves are hits once they have been read."""
    await ready(shop)
    for shelf in SHELVES:
        await shop.text(shelf=shelf)
    replies = await asyncio.gather(*(shop.read(shelf=shelf) for shelf in SHELVES))
    return {reply.source for reply in replies} == {"hit"}


@pytest.mark.parametrize("place", [0, 1], ids=["the URL's node", "another node"])
async def test_a_replica_takes_over_while_its_master_is_down(start: Start, cluster: Cluster, place: int) -> None:
    writer, reader = await start(poll=POLL), await start(poll=POLL)
    assert await hits(writer)
    assert await hits(reader)
    cluster.masters[place].kill()
    for shelf in SHELVES:
        await writer.write("new", shelf=shelf)
        assert await reader.text(shelf=shelf) == "new"
    await until(lambda: is_master(cluster.replicas[place]))
    assert await hits(reader)
    assert await hits(writer)
    assert [await reader.text(shelf=shelf) for shelf in SHELVES] == ["new"] * len(SHELVES)
    assert not cluster.masters[place].is_running
    assert await rows(reader.pool) == 0
    await comes_back(cluster, place, reader)


async def comes_back(cluster: Cluster, place: int, shop: Shop) -> None:
    """Start the old master again: it is a replica, and processes keep the current servers."""
    old, epoch = cluster.masters[place], shop.cache.store.epoch
    old.start()
    await until(lambda: not is_master(old))
    await asyncio.sleep(2 * POLL / 1000)
    assert shop.cache.store.epoch == epoch
    assert await hits(shop)


def named(*servers: Valkey) -> str:
    """Return the URL that names nodes."""
    return f"redis://{hosts(servers)}/0"


async def test_a_starting_process_skips_dead_nodes_of_its_url(start: Start, cluster: Cluster) -> None:
    await fail_over(cluster, 0)
    shop = await start(redis_url=named(cluster.masters[0], cluster.masters[1]))
    assert await hits(shop)


async def test_a_process_whose_url_names_only_a_replica_uses_the_masters(start: Start, cluster: Cluster) -> None:
    shop = await start(redis_url=named(cluster.replicas[1]))
    assert await hits(shop)
    used = {node.run_id for node in shop.cache.store.topology.nodes}
    assert len(used) == len(cluster.masters)


async def test_a_process_whose_only_node_is_dead_waits_for_it(start: Start, cluster: Cluster) -> None:
    await fail_over(cluster, 0)
    with capture_logs() as logs:
        shop = await start(wait=False)
        assert (await shop.read())[:2] == (b"old", "bypass")
        await asyncio.sleep(0.3)
    [line] = [log for log in logs if log["event"] == "redis away"]
    assert "Connect call failed" in line["reason"]
    cluster.masters[0].start()
    assert await hits(shop)
