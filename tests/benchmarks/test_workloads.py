"""The two workloads of docs/workloads.md, with and without the cache: hit rates and statements."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pytest
import redis

from ops.sample_data import load_sample_data
from ops.servers import Postgres, postgres_url
from services.cache_tags import CacheTags
from services.namespaces import NAMESPACES
from tests.benchmarks.cases import open_salons
from tests.stack import Stack, executed, running, unconnected_cache
from tools.workloads import IN_FLIGHT, PREDECESSOR, ZIPF, Step, Trace, Workload, ceiling, salons, warm_up

# A TTL of an hour for every entry, so that none expires during a slow run on a busy machine.
SETTINGS: dict[str, Any] = {
    "cache": {"poll": 60_000, "timeout": 100, "ttl": dict.fromkeys([each.name for each in NAMESPACES], 3600)}
}
PAST_THE_CACHE = (("cache-control", "no-cache"),)


class Databases:
    """Copies of a database with the sample data."""

    def __init__(self, postgres: Postgres) -> None:
        """Load the sample data into the first."""
        self._port = postgres.port
        self.url = self.copy("workload", "parlor")
        load_sample_data(self.url, 1)
        open_salons(self.url)

    def copy(self, name: str, template: str = "workload") -> str:
        """Return the URL of a fresh copy."""
        with psycopg.connect(postgres_url(self._port, "postgres"), autocommit=True) as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return postgres_url(self._port, name)


@pytest.fixture(scope="module")
def databases(postgres: Postgres) -> Iterator[Databases]:
    """A database with the sample data, to be copied."""
    yield Databases(postgres)


async def play(stack: Stack, steps: Sequence[Step], metadata: Any = None) -> dict[str, int]:
    """Make the calls, IN_FLIGHT at a time; return the number of reads by source, and of all statements."""
    stubs = {"booking": stack.booking, "messaging": stack.messaging, "stats": stack.stats}
    before = sum([await executed(stack, name) for name in stubs])
    figures = {"near": 0, "hit": 0, "miss": 0, "bypass": 0}
    waiting = iter(steps)

    async def caller() -> None:
        for step in waiting:
            call = getattr(stubs[step.service], step.method)(step.request, metadata=None if step.writes else metadata)
            await call
            if not step.writes:
                figures[str(dict(await call.trailing_metadata())["x-cache"])] += 1

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    for server in stack.servers.values():
        await server.cache.settle()
    return figures | {"statements": sum([await executed(stack, name) for name in stubs]) - before}


async def measure(workload: Workload, databases: Databases, redis_url: str) -> dict[str, float]:
    """Return the hit rate, its ceilings, and the statements of the reads with and without the cache."""
    tags = CacheTags(unconnected_cache())
    steps = list(Trace(workload, salons(databases.url), tags).steps())
    before = warm_up(steps) if workload.warm else []
    reads = [step for step in steps if not step.writes]
    async with running(databases.copy("workload_on"), redis_url, **SETTINGS) as stack:
        await play(stack, before)
        on = await play(stack, steps)
        refused = sum(server.cache.counters.refused_fills for server in stack.servers.values())
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    async with running(databases.copy("workload_off"), redis_url, **SETTINGS) as stack:
        off = await play(stack, steps, PAST_THE_CACHE)
    async with running(databases.copy("workload_writes"), redis_url, **SETTINGS) as stack:
        writes = (await play(stack, [step for step in steps if step.writes]))["statements"]
    assert off["bypass"] == len(reads)
    return {
        "reads": len(reads),
        "writes": len(steps) - len(reads),
        "hit rate": (on["near"] + on["hit"]) / len(reads),
        "ceiling": ceiling(before, steps),
        "ceiling, salon-wide tags": ceiling(before, steps, parts=False),
        "fills refused": refused,
        "read statements": on["statements"] - writes,
        "read statements, cache off": off["statements"] - writes,
    }


@pytest.mark.parametrize("workload", [PREDECESSOR, ZIPF], ids=["predecessor", "zipf"])
async def test_the_hit_rate_of_a_workload_is_near_its_ceiling(
    workload: Workload, databases: Databases, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = await measure(workload, databases, redis_url)
    saved = 1 - figures["read statements"] / figures["read statements, cache off"]
    reached = figures["hit rate"] / figures["ceiling"]
    with capsys.disabled():
        print(f"\n| {workload.name} | |\n|---|---|")
        for name, figure in (figures | {"statements saved": saved, "of the ceiling": reached}).items():
            print(f"| {name} | {figure:.1%} |" if isinstance(figure, float) else f"| {name} | {figure} |")
    if workload is PREDECESSOR:
        assert figures["hit rate"] >= 0.90
        assert saved >= 0.85
    else:
        assert reached >= 0.97
