"""Redis masters that fail under load, with writers in one process and readers in others: no stale read, no error.

With `bounded` a read may be behind by one poll while two servers are masters.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs.cache import CacheSettings
from tests.conftest import WITH_USER, valkey_binary
from tests.failover.checked_load import CheckedLoad
from tests.load import until
from tests.processes import processes, stubs
from tests.sentinels import NAME, Replicated, ask, hosts, is_master, named, replicated, sentinel_url
from tests.stack import rows, running
from tools.cluster import Cluster
from tools.proxy import proxy

BEHIND_SECONDS = 2.0  # twice REDIS_POLL: on a busy machine a poll may wait for a CPU
BUSY_SECONDS = 2.0  # margin of a call for a busy machine
DEADLINE_SECONDS = 2.5  # with `wait`, a write without Redis takes up to one poll
BACK_SECONDS = 10.0  # Sentinels take 2 s
STOPPED_SECONDS = 20.0
TWO_MASTERS_SECONDS = 3.0  # several polls; Sentinels demote the old master after 8
HITS = 200  # after this many, the cache is back
MODES = pytest.mark.parametrize("mode", ["bounded", "wait"])


@dataclass(frozen=True)
class Services:
    """The services on a database in one mode of REDIS_WITHOUT; `folder` is for their logs."""

    database_url: str
    mode: str
    folder: Path

    @property
    def cache(self) -> dict[str, Any]:
        """Settings of the cache: the mode, and the default of REDIS_TIMEOUT."""
        return {"without": self.mode, "timeout": CacheSettings().timeout}

    @asynccontextmanager
    async def loaded(self, writer_url: str, reader_url: str) -> AsyncIterator[CheckedLoad]:
        """Run both processes under a load; check it once the block has ended and the cache is back."""
        async with AsyncExitStack() as exits:
            others = exits.enter_context(processes(self.database_url, reader_url, self.folder))
            reader = await exits.enter_async_context(stubs(others))
            writer = await exits.enter_async_context(running(self.database_url, writer_url, cache=self.cache))
            load = CheckedLoad(writer, reader, deadline=DEADLINE_SECONDS + BUSY_SECONDS)
            await load.prepare()
            async with load.running():
                await back(load)
                yield load
                await back(load)
                await until(lambda: rows(self.database_url, "SELECT FROM cache_outbox") == [])
        self._check(load)

    def _check(self, load: CheckedLoad) -> None:
        found = load.found
        stale = f"{len(found.stale)} stale, at most {max(found.stale, default=0):.2f} s behind"
        print(f"{self.mode}: {found.reads} reads, {found.hits} hits, {stale}; {found.failures}", end="; ")
        print(f"longest {found.longest_seconds:.2f} s; writes {sum(len(chain.acknowledged) for chain in load.chains)}")
        if self.mode == "wait":
            assert found.stale == []
        assert max(found.stale, default=0) < BEHIND_SECONDS
        assert found.failures == {}
        assert found.longest_seconds < DEADLINE_SECONDS + BUSY_SECONDS


async def back(load: CheckedLoad) -> None:
    """Wait until hits are counted again."""
    before = load.found.hits
    await until(lambda: load.found.hits > before + HITS, BACK_SECONDS)


@pytest.fixture
def services(database_url: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The services in one mode."""
    monkeypatch.setenv("REDIS_WITHOUT", mode)
    return Services(database_url, mode, tmp_path)


async def kill(servers: Replicated, _: CheckedLoad) -> None:
    """Kill the master's process."""
    servers.master.kill()
    await until(lambda: is_master(servers.replica))


async def stop(servers: Replicated, load: CheckedLoad) -> None:
    """Suspend the master's process; it continues when another server is master."""
    os.kill(servers.master.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(STOPPED_SECONDS + BUSY_SECONDS):
            await asyncio.gather(asyncio.sleep(STOPPED_SECONDS), back_on(servers, load))
    finally:
        os.kill(servers.master.pid, signal.SIGCONT)
    assert is_master(servers.master)  # it does not yet know of the other
    await asyncio.sleep(TWO_MASTERS_SECONDS)


async def back_on(servers: Replicated, load: CheckedLoad) -> None:
    """Wait until the cache is back on the replica."""
    await until(lambda: is_master(servers.replica))
    await back(load)


@MODES
@pytest.mark.parametrize("fail", [kill, stop])
async def test_a_promoted_replica_takes_over(
    services: Services, fail: Callable[[Replicated, CheckedLoad], Awaitable[None]]
) -> None:
    with replicated(sentinels=3) as servers:
        url = sentinel_url(servers.sentinels)
        async with services.loaded(url, url) as load:
            await fail(servers, load)


@MODES
async def test_a_process_started_while_there_are_two_masters_agrees_with_the_others(services: Services) -> None:
    with replicated(sentinels=3) as servers:
        url = sentinel_url(servers.sentinels)
        async with AsyncExitStack() as exits, services.loaded(url, url) as load:
            ask(servers.sentinels[0], "SENTINEL", "FAILOVER", NAME)
            await until(lambda: named(servers.sentinels[0]) == servers.replica.port)
            late = running(services.database_url, url, cache=services.cache)
            load.readers.append(await exits.enter_async_context(late))
            assert is_master(servers.master)
            await back(load)
            await asyncio.sleep(TWO_MASTERS_SECONDS)
            assert is_master(servers.master)


@MODES
async def test_a_master_demoted_in_place_is_abandoned(services: Services) -> None:
    with replicated() as servers:
        url = f"redis://{hosts([servers.master, servers.replica])}"
        async with services.loaded(url, url):
            servers.replica.follow(None)
            await asyncio.sleep(1)  # writes are now registered with one of them only
            servers.master.follow(servers.replica)


@MODES
async def test_processes_that_reach_two_masters_agree(services: Services) -> None:
    with replicated() as servers:
        async with proxy(servers.master.port) as between:
            urls = (
                f"redis://127.0.0.1:{port},127.0.0.1:{servers.replica.port}"
                for port in (between.port, servers.master.port)
            )
            async with services.loaded(*urls):
                between.blackhole = True
                servers.replica.follow(None)
                await asyncio.sleep(12)  # the readers use the old master again after a pause of 5 to 10 s
                between.blackhole = False
                servers.master.follow(servers.replica)


@MODES
async def test_a_replica_takes_over_from_the_cluster_node_named_in_the_url(services: Services) -> None:
    with Cluster(binary=valkey_binary(), replicated=True, node_timeout_ms=1000, options=WITH_USER) as cluster:
        async with services.loaded(cluster.url, cluster.url):
            cluster.masters[0].kill()
            await until(lambda: is_master(cluster.replicas[0]))
