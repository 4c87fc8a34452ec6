"""Masters of Redis that fail under load, with writers in one process and readers in others: nothing stale, no error.

With `bounded` a read may be behind for one poll while two servers call themselves master.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import valkey_binary
from tests.failover.checked_load import CheckedLoad
from tests.load import until
from tests.processes import processes, stubs
from tests.sentinels import NAME, Replicated, ask, hosts, is_master, named, replicated, sentinel_url
from tests.stack import rows, running
from tools.cluster import Cluster
from tools.proxy import proxy

BEHIND_SECONDS = 2.0  # REDIS_POLL, and as long again: on a busy machine the poll itself may wait for a processor
BUSY_SECONDS = 2.0  # what a busy machine may add to a call
DEADLINE_SECONDS = 2.5  # with `wait` a write without Redis takes up to a poll
BACK_SECONDS = 10.0  # Sentinels take 2 s
STOPPED_SECONDS = 20.0
TWO_MASTERS_SECONDS = 3.0  # several polls; Sentinels demote the old one after 8
HITS = 200  # more of them, and the cache is back
MODES = pytest.mark.parametrize("mode", ["bounded", "wait"])


@dataclass(frozen=True)
class Services:
    """A database, where the services keep their cache, and what writes do without it."""

    database_url: str
    mode: str
    folder: Path

    @asynccontextmanager
    async def loaded(self, writer_url: str, reader_url: str) -> AsyncIterator[CheckedLoad]:
        """Run both processes under a load; check it once the block has ended and the cache is back."""
        async with AsyncExitStack() as exits:
            others = exits.enter_context(processes(self.database_url, reader_url, self.folder))
            reader = await exits.enter_async_context(stubs(others))
            writer = await exits.enter_async_context(
                running(self.database_url, writer_url, cache={"without": self.mode})
            )
            load = CheckedLoad(writer, reader, deadline=DEADLINE_SECONDS)
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
    """Return when hits are counted again."""
    before = load.found.hits
    await until(lambda: load.found.hits > before + HITS, BACK_SECONDS)


@pytest.fixture
def services(database_url: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    """What runs the services in a mode."""
    monkeypatch.setenv("REDIS_WITHOUT", mode)
    return Services(database_url, mode, tmp_path)


async def kill(servers: Replicated, _: CheckedLoad) -> None:
    """End the master's process."""
    servers.master.kill()
    await until(lambda: is_master(servers.replica))


async def stop(servers: Replicated, load: CheckedLoad) -> None:
    """Stop the master's process; it goes on when another is master."""
    os.kill(servers.master.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(STOPPED_SECONDS + BUSY_SECONDS):
            await asyncio.gather(asyncio.sleep(STOPPED_SECONDS), back_on(servers, load))
    finally:
        os.kill(servers.master.pid, signal.SIGCONT)
    assert is_master(servers.master)  # it does not know yet
    await asyncio.sleep(TWO_MASTERS_SECONDS)


async def back_on(servers: Replicated, load: CheckedLoad) -> None:
    """Return when the cache is back on the replica."""
    await until(lambda: is_master(servers.replica))
    await back(load)


@MODES
@pytest.mark.parametrize("fail", [kill, stop])
async def test_what_sentinels_promote_takes_over(
    services: Services, fail: Callable[[Replicated, CheckedLoad], Awaitable[None]]
) -> None:
    with replicated(sentinels=3) as servers:
        url = sentinel_url(servers.sentinels)
        async with services.loaded(url, url) as load:
            await fail(servers, load)


@MODES
async def test_a_process_that_starts_while_two_are_masters_agrees_with_the_others(services: Services) -> None:
    with replicated(sentinels=3) as servers:
        url = sentinel_url(servers.sentinels)
        async with AsyncExitStack() as exits, services.loaded(url, url) as load:
            ask(servers.sentinels[0], "SENTINEL", "FAILOVER", NAME)
            await until(lambda: named(servers.sentinels[0]) == servers.replica.port)
            late = running(services.database_url, url, cache={"without": services.mode})
            load.readers.append(await exits.enter_async_context(late))
            assert is_master(servers.master)
            await back(load)
            await asyncio.sleep(TWO_MASTERS_SECONDS)
            assert is_master(servers.master)


@MODES
async def test_a_master_that_is_demoted_in_place_is_left(services: Services) -> None:
    with replicated() as servers:
        url = f"redis://{hosts([servers.master, servers.replica])}"
        async with services.loaded(url, url):
            servers.replica.follow(None)
            await asyncio.sleep(1)  # what is written now is registered with one of them only
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
                await asyncio.sleep(12)  # the pause of 5 to 10 s after which the readers use the old master again
                between.blackhole = False
                servers.master.follow(servers.replica)


@MODES
async def test_the_node_of_a_cluster_that_the_url_names_dies_and_its_replica_takes_over(services: Services) -> None:
    with Cluster(binary=valkey_binary(), replicated=True, node_timeout_ms=1000) as cluster:
        async with services.loaded(cluster.url, cluster.url):
            cluster.masters[0].kill()
            await until(lambda: is_master(cluster.replicas[0]))
