"""Entries that are often missed are loaded ahead of callers: bounded, one at a time, and never staler than a miss."""

import asyncio

import pytest

from libs.cache.refresh_ahead import PATIENCE_SECONDS
from tests.cache.shop import Pause, Shop, Start, until


@pytest.fixture
async def shop(start: Start) -> Shop:
    """A process that loads ahead when the test calls it."""
    return await quiet(start)


async def quiet(start: Start, warm: int = 10) -> Shop:
    """Start a process that remembers `warm` entries, and checks for missing ones only when the test calls it."""
    shop = await start(warm=warm)
    await shop.cache.warmer.close()
    return shop


async def look(shop: Shop) -> list[str]:
    """Check for missing entries; return the loaded ones."""
    shop.loads.clear()
    await shop.cache.warmer.check()
    await shop.cache.settle()
    return shop.loads


async def miss_often(shop: Shop, *names: str) -> None:
    """Miss entries often enough, and remove them from the cache."""
    for _ in range(2):
        for name in names:
            assert (await shop.read(name)).source == "miss"
            await shop.cache.settle()
        await shop.write("new")


def counted(shop: Shop) -> tuple[int, int]:
    """Return the number of entries loaded ahead, and how many of them were read."""
    return shop.cache.counters.warmed, shop.cache.counters.warmed_hits


async def test_an_entry_missed_repeatedly_is_loaded_ahead(shop: Shop) -> None:
    await miss_often(shop, "tea")
    assert await look(shop) == ["tea"]
    assert [(await shop.read())[:2] for _ in range(3)] == [(b"new", "hit")] * 3
    assert counted(shop) == (1, 1)
    await shop.write("newer")
    assert await look(shop) == ["tea"]
    assert (await shop.read())[:2] == (b"newer", "hit")
    assert (counted(shop), shop.cache.counters.misses) == ((2, 2), 2)


async def test_entries_missed_once_and_cached_entries_are_not_loaded_ahead(shop: Shop) -> None:
    await shop.text()
    assert await look(shop) == []
    await shop.write("new")
    assert await look(shop) == []
    await miss_often(shop, "tea")
    await shop.text()
    assert await look(shop) == []
    assert counted(shop) == (0, 0)


async def test_an_entry_loaded_ahead_in_vain_is_forgotten_until_it_is_missed_again(shop: Shop) -> None:
    await miss_often(shop, "tea")
    assert await look(shop) == ["tea"]
    await shop.write("newer")
    assert [await look(shop), await look(shop)] == [[], []]
    assert counted(shop) == (1, 0)
    await miss_often(shop, "tea")
    assert await look(shop) == ["tea"]


async def test_only_the_latest_entries_are_remembered(start: Start) -> None:
    shop = await quiet(start, warm=2)
    await miss_often(shop, "tea", "milk")
    await miss_often(shop, "milk", "rice", "salt")
    assert sorted(await look(shop)) == []  # each has evicted another before it was missed twice
    await miss_often(shop, "rice", "salt")
    assert sorted(await look(shop)) == ["rice", "salt"]
    assert len(shop.cache.warmer.unasked) == 2


async def test_entries_are_loaded_ahead_one_at_a_time(shop: Shop) -> None:
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


async def test_a_load_ahead_waits_for_rpcs_but_not_forever(shop: Shop) -> None:
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


async def test_a_write_during_a_load_ahead_is_not_hidden(shop: Shop, start: Start) -> None:
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


async def test_an_expected_reply_is_read_ahead_and_not_counted(shop: Shop) -> None:
    async def fail() -> None:
        raise LookupError

    await shop.cache.warmer.expect([shop.read, fail, lambda: shop.read("milk"), shop.read])
    await shop.cache.settle()
    counters = shop.cache.counters
    assert (counters.hits, counters.misses, counters.bypasses) == (0, 0, 0)
    assert counted(shop) == (2, 0)
    assert [(await shop.read(name)).source for name in ("tea", "milk")] == ["hit", "hit"]
    assert counted(shop) == (2, 2)


async def test_entries_are_loaded_ahead_soon_after_a_miss_or_an_invalidation_by_others(start: Start) -> None:
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
