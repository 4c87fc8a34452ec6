"""Masters that are demoted in place, two masters at once, and a database with a different history."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from psycopg_pool import AsyncConnectionPool

from libs.cache.settings import WithoutRedis
from ops.servers import Valkey
from tests.cache.outages import ready
from tests.cache.shop import Shop, Start, until
from tests.conftest import WITH_USER, valkey_binary
from tests.sentinels import ask, replicated

POLL = 200  # ms


@pytest.fixture
def masters() -> Iterator[tuple[Valkey, Valkey]]:
    """Two servers that both take writes."""
    first, second = [Valkey(binary=valkey_binary(), options=WITH_USER) for _ in range(2)]
    with first, second:
        yield first, second


@pytest.fixture
async def start(pool: AsyncConnectionPool, masters: tuple[Valkey, Valkey]) -> AsyncIterator[Start]:
    """Starts processes, by default on the first server."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, masters[0].url)


async def test_a_master_demoted_in_place_is_abandoned_within_a_poll(
    start: Start, masters: tuple[Valkey, Valkey]
) -> None:
    shop = await start(poll=POLL)
    assert (await shop.text(), (await shop.read()).source) == ("old", "hit")
    masters[0].follow(masters[1])
    await until(lambda: not shop.cache.store.ready)
    assert (await shop.read())[:2] == (b"old", "bypass")


async def test_a_write_to_a_master_demoted_in_place_is_left_pending(
    start: Start, masters: tuple[Valkey, Valkey]
) -> None:
    shop = await start(poll=POLL)
    await shop.text()
    masters[0].follow(masters[1])
    await shop.write("new")
    assert await shop.text() == "new"
    other = await start(redis_url=masters[1].url, poll=POLL)
    await ready(other)
    assert (await other.text(), (await other.read()).source) == ("new", "hit")


async def test_the_entries_of_a_master_demoted_and_promoted_again_are_dropped(
    start: Start, masters: tuple[Valkey, Valkey]
) -> None:
    shop = await start(poll=POLL)
    await shop.text()
    epoch = shop.cache.store.epoch
    masters[0].follow(masters[1])
    masters[0].follow(None)
    await until(lambda: shop.cache.store.ready and shop.cache.store.epoch != epoch)
    assert (await shop.read())[:2] == (b"old", "miss")


@pytest.mark.parametrize(
    ("without", "poll"),
    [(WithoutRedis.BOUNDED, POLL), (WithoutRedis.WAIT, 30_000), (WithoutRedis.REFUSE, 30_000)],
)
async def test_a_master_demoted_under_its_promoted_replica_serves_no_stale_hits(
    pool: AsyncConnectionPool, without: WithoutRedis, poll: int
) -> None:
    with replicated() as servers:
        async with AsyncExitStack() as exits:
            start = Start(exits, pool, servers.master.url)
            reader, writer = await start(poll=poll, without=without), await start(poll=poll, without=without)
            assert (await reader.text(), (await reader.read()).source) == ("old", "hit")
            await until(lambda: ask(servers.replica, "DBSIZE") == ask(servers.master, "DBSIZE"))
            servers.replica.follow(None)
            await writer.write("new")
            assert ask(servers.master, "INFO", "replication")["connected_slaves"] == 0
            servers.master.follow(servers.replica)
            await until(lambda: ask(servers.master, "INFO", "replication").get("master_link_status") == "up")
            if without is WithoutRedis.BOUNDED:
                await asyncio.sleep(1.5 * POLL / 1000)
            assert (await reader.read())[:2] == (b"new", "bypass")


async def test_a_process_that_starts_on_a_replica_does_not_use_it(start: Start, masters: tuple[Valkey, Valkey]) -> None:
    masters[0].follow(masters[1])
    shop = await start(poll=POLL, wait=False)
    assert (await shop.read())[:2] == (b"old", "bypass")


async def polled(shop: Shop) -> None:
    """Wait 1.5 polls, and until a poll that began meanwhile has ended: on a busy machine it may be late."""
    recovery, polls = shop.cache._recovery, list[None]()
    drain = recovery.drain

    async def noted() -> None:
        try:
            await drain()
        finally:
            polls.append(None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "drain", noted)
        await asyncio.sleep(1.5 * POLL / 1000)
        await until(lambda: polls or not shop.cache.store.ready)


@pytest.mark.parametrize("without", [WithoutRedis.BOUNDED, WithoutRedis.WAIT])
async def test_of_two_masters_only_the_one_put_in_force_last_is_used(
    start: Start, masters: tuple[Valkey, Valkey], without: WithoutRedis
) -> None:
    reader = await start(poll=POLL, without=without)
    assert (await reader.text(), (await reader.read()).source) == ("old", "hit")
    writer = await start(redis_url=masters[1].url, poll=POLL, without=without)
    for number in range(20):
        await writer.write(f"{number}")
        if without is WithoutRedis.BOUNDED:
            await polled(reader)
        assert await reader.text() == f"{number}"
        assert await writer.text() == f"{number}"


async def test_a_write_on_a_master_that_is_no_longer_in_force_is_seen(
    start: Start, masters: tuple[Valkey, Valkey]
) -> None:
    writer = await start(poll=60_000)
    await writer.text()
    reader = await start(redis_url=masters[1].url, poll=POLL)
    assert (await reader.text(), (await reader.read()).source) == ("old", "hit")
    await writer.write("new")
    assert not writer.cache.store.ready
    await polled(reader)
    assert (await reader.text(), (await reader.read()).source) == ("new", "hit")


async def test_two_masters_are_not_put_in_force_alternately(start: Start, masters: tuple[Valkey, Valkey]) -> None:
    first = await start(poll=POLL)
    second = await start(redis_url=masters[1].url, poll=POLL)
    epoch = second.cache.store.epoch
    await until(lambda: not first.cache.store.ready)
    await asyncio.sleep(1)
    assert (second.cache.store.ready, second.cache.store.epoch) == (True, epoch)


@pytest.mark.parametrize(
    "history", ["1/00000001", "", "7000000000000000000/00000009"], ids=["other system", "none", "other timeline"]
)
async def test_a_database_with_a_different_history_drops_the_cache(start: Start, history: str) -> None:
    shop = await start(poll=POLL)
    await shop.text()
    epoch = shop.cache.store.epoch
    async with shop.pool.connection() as conn:
        await conn.execute("UPDATE cache_in_force SET history = %s", [history])
        await conn.execute("UPDATE items SET label = 'restored'")
    await until(lambda: shop.cache.store.ready and shop.cache.store.epoch != epoch)
    assert (await shop.text(), (await shop.read()).source) == ("restored", "hit")


async def test_a_restarted_master_is_put_in_force_again(start: Start, masters: tuple[Valkey, Valkey]) -> None:
    shop = await start(poll=POLL)
    await shop.text()
    epoch = shop.cache.store.epoch
    masters[0].kill()
    await shop.write("new")
    masters[0].start()
    await until(lambda: shop.cache.store.ready and shop.cache.store.epoch != epoch)
    assert (await shop.text(), (await shop.read()).source) == ("new", "hit")


async def test_the_next_host_of_the_url_is_used_when_the_first_is_dead(
    start: Start, masters: tuple[Valkey, Valkey]
) -> None:
    url = f"redis://127.0.0.1:{masters[0].port},127.0.0.1:{masters[1].port}/0"
    shop = await start(redis_url=url, poll=POLL)
    await shop.text()
    masters[0].kill()
    await shop.write("new")
    await ready(shop)
    assert (await shop.text(), (await shop.read()).source) == ("new", "hit")
