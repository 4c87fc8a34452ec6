"""How looks that come one after the other share a round trip, and that a look on its own waits for nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic

import pytest

from libs.cache import Reply
from libs.cache.linger import ENOUGH, LONGEST_PAUSE, SHORTEST_PAUSE, TRIES, Linger
from tests.cache.shop import Shop, Start
from tests.cache.wire import Wire, traced

LONG_MS = 50
LONG = LONG_MS / 1000

Lingering = tuple[Shop, Wire]


@pytest.fixture
async def lingering(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Lingering]:
    """A process whose looks wait for long, and whose traffic is counted; one reply is cached."""
    async with traced(database_url, redis_url, tmp_path / "trace") as (pool, wire), AsyncExitStack() as exits:
        shop = await Start(exits, pool, redis_url)(linger=LONG_MS)
        await shop.text()
        await shop.text()
        wire.reset()
        yield shop, wire


async def come(shop: Shop, reads: int) -> list[asyncio.Task[Reply]]:
    """Begin to read, each time in a tick of its own."""
    tasks = []
    for _ in range(reads):
        tasks.append(asyncio.create_task(shop.read()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return tasks


async def test_a_read_on_its_own_waits_for_nobody(lingering: Lingering) -> None:
    shop, wire = lingering
    began = monotonic()
    for _ in range(20):
        assert (await shop.read()).source == "hit"
    assert (wire.valkey, monotonic() - began < LONG) == ({"mget": 20}, True)


async def test_reads_of_many_ticks_share_a_look_that_leaves_with_the_last_of_enough(lingering: Lingering) -> None:
    shop, wire = lingering
    began = monotonic()
    replies = await asyncio.gather(*await come(shop, 1 + 2 * ENOUGH))
    assert {reply.source for reply in replies} == {"hit"}
    assert (wire.valkey, monotonic() - began < LONG) == ({"mget": 3}, True)  # the first one had nobody to wait for


async def test_too_few_wait_no_longer_than_they_may(lingering: Lingering) -> None:
    shop, wire = lingering
    began = monotonic()
    await asyncio.gather(*await come(shop, 3))
    assert LONG * 0.9 < monotonic() - began < 3 * LONG
    assert wire.valkey == {"mget": 2}


async def test_whoever_goes_away_while_it_waits_keeps_no_other_waiting(lingering: Lingering) -> None:
    shop, _ = lingering
    _, gone, *others = await come(shop, 3)
    gone.cancel()
    assert {reply.source for reply in await asyncio.gather(*others)} == {"hit"}


async def test_a_server_lost_meanwhile_keeps_nobody_waiting(lingering: Lingering) -> None:
    shop, _ = lingering
    reads = await come(shop, 3)
    await asyncio.wait(reads[:1])
    shop.cache.store.mark_lost(ConnectionError("lost"))
    assert {reply.body for reply in await asyncio.gather(*reads[1:])} == {b"old"}  # past it, or when it is back


async def test_a_process_that_may_not_linger_never_does(database_url: str, redis_url: str, start: Start) -> None:
    shop = await start(linger=0)
    await shop.text()
    began = monotonic()
    for _ in range(3):
        await asyncio.gather(*await come(shop, 3))
    assert monotonic() - began < LONG


def test_tries_that_fail_come_less_often_until_one_succeeds() -> None:
    linger, now, pause = Linger(1), 0.0, SHORTEST_PAUSE
    assert linger.wait(now, under_way=0) == 0
    for _ in range(10):
        for _ in range(TRIES):
            assert linger.wait(now, under_way=1) == 1
            linger.too_few(now)
        assert linger.wait(now + pause * 0.99, under_way=1) == 0
        now, pause = now + pause, min(2 * pause, LONGEST_PAUSE)
    assert pause == LONGEST_PAUSE
    assert linger.wait(now, under_way=1) == 1
    linger.enough()
    assert linger.wait(now, under_way=0) == 1  # it pays: also the first of a batch waits
    for _ in range(TRIES):
        linger.too_few(now)
    assert linger.wait(now + SHORTEST_PAUSE, under_way=1) == 1
