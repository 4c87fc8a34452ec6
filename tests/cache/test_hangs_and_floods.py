"""Hangs of Valkey and floods of distinct keys. HANG_SECONDS=8 DISTINCT_KEYS=140000 run the tests at full length."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from psycopg_pool import AsyncConnectionPool

from libs.cache import CacheSettings
from ops.servers import Valkey
from ops.up import VALKEY_OPTIONS
from tests.cache.outages import hanging, ready, rows
from tests.cache.servers import CacheServer, each
from tests.cache.shop import Shop, Start, until
from tests.conftest import WITH_USER, valkey_binary

HANG_SECONDS = float(os.environ.get("HANG_SECONDS", "1"))
DISTINCT_KEYS = int(os.environ.get("DISTINCT_KEYS", "20_000"))
AT_ONCE = 500


@pytest.fixture
async def start(pool: AsyncConnectionPool, own_valkey: CacheServer) -> AsyncIterator[Start]:
    """Starts processes on a Valkey that the test may stop."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, own_valkey.url, CacheSettings().timeout)


async def test_a_hanging_redis_costs_one_timeout_and_is_used_again_afterwards(
    own_valkey: CacheServer, start: Start
) -> None:
    shop, other = await start(), await start()
    await shop.text()
    slowest, written = 0.0, 0
    with hanging(own_valkey):
        ends = time.perf_counter() + HANG_SECONDS
        while (began := time.perf_counter()) < ends:
            written += 1
            await shop.write(f"{written}")
            assert (await shop.read())[:2] == (f"{written}".encode(), "bypass")
            slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 1  # a timeout of 90 ms, on a busy machine
    await ready(shop, other)
    assert (await shop.text(), await other.text(), await rows(shop.pool)) == (f"{written}", f"{written}", 0)
    await until_hit(shop)


async def until_hit(shop: Shop) -> None:
    async with asyncio.timeout(10):
        while (await shop.read()).source != "hit":
            await shop.cache.settle()


def memory_mb() -> float:
    """Return the memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


async def test_memory_of_a_process_does_not_grow_with_the_keys_that_are_read(start: Start) -> None:
    shop = await start(refill=100, near=("shop",), near_size=1)
    memory = []
    for first in range(0, DISTINCT_KEYS, AT_ONCE):
        await asyncio.gather(*(shop.read_together(f"{n}", shelf=f"s{n}") for n in range(first, first + AT_ONCE)))
        memory.append(memory_mb())
    await shop.cache.settle()
    await until(lambda: not shop.cache.loader.unstored)
    assert max(memory[len(memory) // 2 :]) - memory[len(memory) // 2 - 1] < 8
    assert not shop.cache.loader._in_flight


def test_the_servers_we_start_limit_their_memory_and_may_evict_any_key() -> None:
    compose = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    assert ", ".join(f'"{option}"' for option in VALKEY_OPTIONS) in compose
    with Valkey(binary=valkey_binary(), options=(*VALKEY_OPTIONS, *WITH_USER)) as server:
        [client] = each(server.url)
        limits = client.config_get("maxmemory*")
    assert (limits["maxmemory"], limits["maxmemory-policy"]) == (f"{256 * 2**20}", "allkeys-lru")
