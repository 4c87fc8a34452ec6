"""What is loaded ahead of callers: what they missed often, bounded, one at a time, and never staler than a miss."""

import asyncio

import pytest

from libs.cache.refresh_ahead import PATIENCE_SECONDS
from tests.cache.shop import Pause, Shop, Start, until


@pytest.fixture
async def shop(start: Start) -> Shop:
    """A process that loads ahead when the test says so."""
    return await quiet(start)


async def quiet(start: Start, warm: int = 10) -> Shop:
    """Start a process that remembers so many entries, and looks for what is gone when it is told to."""
    shop = await start(warm=warm)
    await shop.cache.warmer.close()
    return shop


async def look(shop: Shop) -> list[str]:
    """Look for what is gone; return what was loaded."""
    shop.loads.clear()
    await shop.cache.warmer.check()
    await shop.cache.settle()
    return shop.loads


async def miss_often(shop: Shop, *names: str) -> None:
    """Miss entries as often as it takes, and leave them out of the cache."""
    for _ in range(2):
        for name in names:
            assert (await shop.read(name)).source == "miss"
            await shop.cache.settle()
        await shop.write("new")


def counted(shop: Shop) -> tuple[int, int]:
    """Return how many entries were loaded ahead, and how many of them were asked for."""
    return shop.cache.counters.warmed, shop.cache.counters.warmed_hits


async def test_what_is_missed_again_and_again_is_there_before_it_is_asked_for(shop: Shop) -> None:
    await miss_often(shop, "tea")
    assert await look(shop) == ["tea"]
    assert [(await shop.read())[:2] for _ in range(3)] == [(b"new", "hit")] * 3
    assert counted(shop) == (1, 1)
    await shop.write("newer")
    assert await look(shop) == ["tea"]
    assert (await shop.read())[:2] == (b"newer", "hit")
    assert (counted(shop), shop.cache.counters.misses) == ((2, 2), 2)


async def test_what_was_missed_once_and_what_is_cached_is_not_loaded(shop: Shop) -> None:
    await shop.text()
    assert await look(shop) == []
    await shop.write("new")
    assert await look(shop) == []
    await miss_often(shop, "tea")
    await shop.text()
    assert await look(shop) == []
    assert counted(shop) == (0, 0)


async def test_what_was_loaded_in_vain_is_forgotten_until_it_is_missed_again(shop: Shop) -> None:
    await miss_often(shop, "tea")
    assert await look(shop) == ["tea"]
    await shop.write("newer")
    assert [await look(shop), await look(shop)] == [[], []]
    assert counted(shop) == (1, 0)
    await miss_often(shop, "tea")
    assert await look(shop) == ["tea"]


async def test_only_the_last_entries_are_remembered(start: Start) -> None:
    shop = await quiet(start, warm=2)
    await miss_often(shop, "tea", "milk")
    await miss_often(shop, "milk", "rice", "salt")
    assert sorted(await look(shop)) == []  # each has pushed out another before it was missed twice
    await miss_often(shop, "rice", "salt")
    assert sorted(await look(shop)) == ["rice", "salt"]
    assert len(shop.cache.warmer.unasked) == 2


async def test_entries_are_loaded_one_at_a_time(shop: Shop) -> None:
    pause, most, running = Pause(), 0, 0

    async def enter() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await pause()

    async def leave() -> None:
        nonlocal running
        running -= 1

    pause.go_on.set()
    for _ in range(2):
        for name in ("tea", "milk", "rice"):
            await shop.read(name, before=enter, after=leave)
        await shop.write("new")
    pause.go_on.clear()
    looking = asyncio.create_task(look(shop))
    await until(lambda: running)
    callers = await shop.read("flour")  # waits for none of them
    pause.go_on.set()
    assert (callers.source, sorted(await looking), most) == ("miss", ["flour", "milk", "rice", "tea"], 1)


async def test_a_load_gives_way_to_rpcs_but_not_for_ever(shop: Shop) -> None:
    busy, asked = True, 0

    def in_flight() -> bool:
        nonlocal asked
        asked += 1
        return busy

    shop.cache.warmer.busy = in_flight
    await miss_often(shop, "tea", "milk")
    began = asyncio.get_running_loop().time()
    looking = asyncio.create_task(look(shop))
    await until(lambda: asked > 3)
    assert shop.loads == []
    assert sorted(await looking) == ["milk", "tea"]
    assert asyncio.get_running_loop().time() - began >= 2 * PATIENCE_SECONDS


async def test_a_write_during_the_load_is_not_hidden_by_it(shop: Shop, start: Start) -> None:
    writer, pause = await start(), Pause()
    pause.go_on.set()
    for label in ("one", "two"):
        await shop.read(after=pause)
        await writer.write(label)
    pause.go_on.clear()
    pause.reached.clear()
    looking = asyncio.create_task(look(shop))
    await pause.reached.wait()
    await writer.write("new")
    pause.go_on.set()
    await looking
    assert (await shop.read()).body == b"new"


async def test_what_is_expected_is_read_ahead_and_counts_for_nobody(shop: Shop) -> None:
    async def fail() -> None:
        raise LookupError

    await shop.cache.warmer.expect([shop.read, fail, lambda: shop.read("milk"), shop.read])
    await shop.cache.settle()
    counters = shop.cache.counters
    assert (counters.hits, counters.misses, counters.bypasses) == (0, 0, 0)
    assert counted(shop) == (2, 0)
    assert [(await shop.read(name)).source for name in ("tea", "milk")] == ["hit", "hit"]
    assert counted(shop) == (2, 2)


async def test_it_looks_by_itself_soon_after_a_miss_and_also_for_what_others_invalidate(start: Start) -> None:
    shop, writer = await start(warm=10), await start()
    for label in ("one", "two"):
        await shop.text()
        await writer.write(label)
    await until(lambda: shop.cache.counters.warmed)
    await shop.cache.settle()
    assert (await shop.read())[:2] == (b"two", "hit")


async def test_without_valkey_nothing_is_loaded_ahead(shop: Shop) -> None:
    await miss_often(shop, "tea")
    shop.cache.store.mark_lost(TimeoutError())
    assert await look(shop) == []
    await shop.cache.warmer.expect([shop.read])
    assert (shop.loads, counted(shop)) == ([], (0, 0))
    await until(lambda: shop.cache.store.ready)
    assert await look(shop) == ["tea"]
