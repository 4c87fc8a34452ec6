"""Sentinels in REDIS_URL: which one is asked, the master that it names, and the log when none names a usable one."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

import pytest
from psycopg_pool import AsyncConnectionPool
from structlog.testing import capture_logs

from ops.process import free_port
from ops.servers import Valkey
from tests.cache.outages import hanging, ready
from tests.cache.shop import Shop, Start, until
from tests.sentinels import NAME, Replicated, Sentinel, ask, hosts, is_master, replicated, sentinel_url

POLL = 200  # ms
LOGIN = "an-acl-user"  # its password


@pytest.fixture(scope="module")
def running() -> Iterator[Replicated]:
    """A master, its replica and three Sentinels, shared by the tests that leave them unchanged."""
    with replicated(sentinels=3) as servers:
        yield servers


@pytest.fixture
async def start(pool: AsyncConnectionPool, running: Replicated) -> AsyncIterator[Start]:
    """Starts processes that ask the Sentinels."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, sentinel_url(running.sentinels), timeout=500)


async def hits_on(shop: Shop, server: Valkey) -> bool:
    """Return whether a process keeps its cache on a server, and hits."""
    await ready(shop)
    [node] = shop.cache.store.topology.nodes
    await shop.text()
    return node.run_id == ask(server, "INFO", "server")["run_id"] and (await shop.read()).source == "hit"


@contextmanager
def naming(sentinels: Sequence[Sentinel], server: Valkey, master: Valkey) -> Iterator[None]:
    """Make Sentinels name another server until the block ends."""
    for sentinel in sentinels:
        ask(sentinel, "SENTINEL", "REMOVE", NAME)
        ask(sentinel, "SENTINEL", "MONITOR", NAME, "127.0.0.1", server.port, 3)
    try:
        yield
    finally:
        for sentinel in sentinels:
            ask(sentinel, "SENTINEL", "REMOVE", NAME)
            ask(sentinel, "SENTINEL", "MONITOR", NAME, "127.0.0.1", master.port, 3)


async def test_the_master_named_by_sentinels_is_used(start: Start, running: Replicated) -> None:
    shop = await start()
    assert await hits_on(shop, running.master)
    await shop.write("new")
    assert (await shop.text(), (await shop.read()).source) == ("new", "hit")


async def test_a_dead_sentinel_is_skipped(start: Start, running: Replicated) -> None:
    dead = sentinel_url(running.sentinels).replace("://", f"://127.0.0.1:{free_port()},")
    shop = await start(redis_url=dead)
    assert await hits_on(shop, running.master)


async def test_a_hanging_sentinel_is_skipped(start: Start, running: Replicated) -> None:
    with hanging(running.sentinels[0]):
        shop = await start(wait=False)
        assert await hits_on(shop, running.master)


async def test_a_sentinel_that_does_not_know_the_name_is_skipped(start: Start, running: Replicated) -> None:
    first, *_ = running.sentinels
    ask(first, "SENTINEL", "REMOVE", NAME)
    try:
        shop = await start(wait=False)
        assert await hits_on(shop, running.master)
    finally:
        ask(first, "SENTINEL", "MONITOR", NAME, "127.0.0.1", running.master.port, 3)


async def test_a_sentinel_that_names_a_replica_is_skipped(start: Start, running: Replicated) -> None:
    with naming(running.sentinels[:1], running.replica, running.master):
        shop = await start(wait=False)
        assert await hits_on(shop, running.master)


async def test_a_replica_named_by_all_sentinels_is_not_used_before_its_promotion(
    start: Start, running: Replicated
) -> None:
    with naming(running.sentinels, running.replica, running.master):
        with capture_logs() as logs:
            shop = await start(wait=False)
            assert (await shop.read())[:2] == (b"old", "bypass")
            await asyncio.sleep(0.3)  # three more attempts
        [line] = [log for log in logs if log["event"] == "redis away"]
        assert line["reason"].count("the server is a replica") == 3
        running.replica.follow(None)
        assert await hits_on(shop, running.replica)
    running.replica.follow(running.master)


WRONG = {
    "a name that no Sentinel knows": ("://{hosts}/other", "this Sentinel knows no master named 'other'", 3),
    "servers that are no Sentinels": (f"://{{master}},{{master}}/{NAME}", "unknown command 'SENTINEL'", 2),
    "no server": (f"://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/{NAME}", "Connect call failed", 2),
    "a wrong password of the master": (f"://:{LOGIN}@{{hosts}}/{NAME}", "without any password", 3),
    "a wrong password of the Sentinels": (f"://{{hosts}}/{NAME}?sentinel_password={LOGIN}", "without any password", 3),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_the_failures_of_all_sentinels_are_one_line_of_the_log(
    start: Start, running: Replicated, wrong: str
) -> None:
    text, reason, times = WRONG[wrong]
    url = "redis+sentinel" + text.format(hosts=hosts(running.sentinels), master=hosts([running.master]))
    with capture_logs() as logs:
        shop = await start(redis_url=url)
        assert (await shop.read())[:2] == (b"old", "bypass")
        await asyncio.sleep(0.3)
    [line] = [log for log in logs if log["event"] == "redis away"]
    assert line["reason"].count(reason) == times
    assert LOGIN not in str(logs)


async def test_sentinels_and_master_each_have_credentials(pool: AsyncConnectionPool) -> None:
    with replicated(sentinels=1) as servers:
        [sentinel] = servers.sentinels
        ask(servers.master, "ACL", "SETUSER", "parlor", "on", f">{LOGIN}", "~*", "&*", "+@all")
        ask(sentinel, "ACL", "SETUSER", "asker", "on", ">another", "+sentinel|get-master-addr-by-name")
        for server in (servers.master, sentinel):
            ask(server, "ACL", "SETUSER", "default", "off")
        url = f"redis+sentinel://parlor:{LOGIN}@{hosts([sentinel])}/{NAME}"
        async with AsyncExitStack() as exits:
            start = Start(exits, pool, f"{url}?sentinel_username=asker&sentinel_password=another")
            shop = await start()
            assert (await shop.text(), (await shop.read()).source) == ("old", "hit")


async def test_a_promoted_replica_replaces_a_killed_master(pool: AsyncConnectionPool) -> None:
    with replicated(sentinels=3) as servers:
        async with AsyncExitStack() as exits:
            start = Start(exits, pool, sentinel_url(servers.sentinels), timeout=500)
            shop = await start(poll=POLL)
            assert await hits_on(shop, servers.master)
            servers.master.kill()
            await shop.write("new")
            await until(lambda: is_master(servers.replica))
            assert await hits_on(shop, servers.replica)
            assert await shop.text() == "new"
