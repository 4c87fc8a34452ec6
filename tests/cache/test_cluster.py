"""The cache on a cluster: calls over several slots, a slot that moves, the loss of a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import redis
from psycopg_pool import AsyncConnectionPool

from libs.cache.topology import hash_slot
from tests.cache.outages import ready, rows
from tests.cache.servers import each
from tests.cache.shop import Shop, Start, until
from tests.cache.traffic import valkey_calls
from tools.cluster import Cluster

SHELVES = [f"shelf {number}" for number in range(30)]


@pytest.fixture
async def shops(pool: AsyncConnectionPool, own_cluster: Cluster) -> AsyncIterator[list[Shop]]:
    """Two processes on a cluster, which have read every shelf."""
    async with AsyncExitStack() as exits:
        start = Start(exits, pool, own_cluster.url, timeout=500)
        shops = [await start(), await start()]
        for shop in shops:
            await asyncio.gather(*(shop.text(shelf=shelf) for shelf in SHELVES))
        yield shops


async def sources(shop: Shop) -> set[str]:
    """Return the sources of the replies of all shelves."""
    return {reply.source for reply in await asyncio.gather(*(shop.read(shelf=shelf) for shelf in SHELVES))}


async def test_reads_of_one_tick_are_one_mget_per_slot_and_use_every_server(
    shops: list[Shop], own_cluster: Cluster
) -> None:
    slots = {hash_slot(shops[0].shelf(shelf).version_key) for shelf in SHELVES}
    before = valkey_calls(own_cluster.url)
    assert await sources(shops[0]) == {"hit"}
    assert valkey_calls(own_cluster.url) - before == {"mget": len(slots)}
    assert all(client.dbsize() > len(SHELVES) / 3 for client in each(own_cluster.url))


async def test_a_transaction_invalidates_tags_on_every_server(shops: list[Shop]) -> None:
    async with shops[0].cache.transaction(*(shops[0].shelf(shelf) for shelf in SHELVES)):
        assert await sources(shops[1]) <= {"hit", "miss"}
    assert await sources(shops[1]) == {"miss"}


async def test_a_moved_slot_is_followed_and_hides_no_write(shops: list[Shop], own_cluster: Cluster) -> None:
    writer, reader = shops
    slot = hash_slot(writer.shelf().version_key)
    await reader.text()
    clients = [redis.Redis.from_url(node.url) for node in own_cluster.nodes]
    names = [client.cluster("MYID").decode() for client in clients]
    owner = slot * len(clients) // 16_384

    def move(target: int) -> None:
        for key in clients[owner].cluster("GETKEYSINSLOT", slot, 100):
            clients[owner].delete(key)
        for place in (target, 0, 1, 2):
            clients[place].cluster("SETSLOT", slot, "NODE", names[target])

    move((owner + 1) % 3)
    await writer.write("new")
    assert (await reader.read())[:2] == (b"new", "bypass")
    await ready(writer, reader)
    assert (await reader.text(), (await reader.read()).source, await rows(reader.pool)) == ("new", "hit", 0)
    for client in clients:
        client.close()


async def test_a_cluster_that_lost_a_server_is_not_used_until_it_is_complete(
    shops: list[Shop], own_cluster: Cluster
) -> None:
    writer, reader = shops
    own_cluster.nodes[1].kill()
    await until(lambda: not any(shop.cache.store.connected for shop in shops))
    assert await sources(reader) == {"bypass"}
    await writer.write("new")
    assert ((await reader.read()).body, await rows(reader.pool)) == (b"new", 1)
    own_cluster.launch()
    await ready(writer, reader)
    assert (await reader.text(), (await reader.read()).source, await rows(reader.pool)) == ("new", "hit", 0)
    assert "miss" in await sources(reader)  # one server begins a new epoch for all
