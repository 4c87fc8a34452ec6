"""Entries that are read between most writes are loaded again after a write, and are never staler than a miss."""

import asyncio
from typing import Any

import psycopg
import pytest

from libs.cache.refresh_ahead import MOST_AT_ONCE, MOST_OF_A_TAG
from tests.cache.shop import Loaded, Pause, Shop, Start


@pytest.fixture
async def shop(start: Start) -> Shop:
    """A process that remembers 2 entries."""
    return await start(refill=2)


async def refilled(shop: Shop) -> list[str]:
    """Return the loads since the last call, once no refill is due or under way."""
    await shop.cache.settle()
    loads = list(shop.loads)
    shop.loads.clear()
    return loads


async def missed(shop: Shop, *names: str) -> None:
    """Read entries that are not cached."""
    for name in names:
        assert (await shop.read(name)).source == "miss"
    await refilled(shop)


def counted(shop: Shop) -> tuple[int, int]:
    """Return the number of entries loaded again, and how many of them were hit."""
    return shop.cache.counters.refills, shop.cache.counters.refill_hits


async def test_an_entry_is_loaded_again_after_a_write(shop: Shop) -> None:
    await missed(shop, "tea")
    for number in range(3):
        await shop.write(f"new {number}")
        assert await refilled(shop) == ["tea"]
        assert [(await shop.read())[:2] for _ in range(2)] == [(b"new %d" % number, "hit")] * 2
    assert counted(shop) == (3, 3)


async def test_an_entry_that_nobody_reads_is_loaded_in_vain_once(shop: Shop) -> None:
    await missed(shop, "tea")
    await shop.write()
    assert await refilled(shop) == ["tea"]
    for _ in range(5):
        await shop.write()
        assert await refilled(shop) == []
    assert counted(shop) == (1, 0)


async def test_an_entry_that_is_read_again_between_writes_is_loaded_again(shop: Shop) -> None:
    await missed(shop, "tea")
    await shop.write()
    await refilled(shop)
    await shop.write()
    assert await refilled(shop) == []
    await missed(shop, "tea")
    await shop.write()
    assert await refilled(shop) == ["tea"]


async def test_an_entry_of_another_tag_stays(shop: Shop) -> None:
    await missed(shop, "tea")
    await shop.write(shelf="b")
    assert await refilled(shop) == []
    assert (await shop.read()).source == "hit"


async def test_only_the_latest_misses_are_remembered(shop: Shop) -> None:
    await missed(shop, "tea", "milk", "salt")
    await shop.write()
    assert sorted(await refilled(shop)) == ["milk", "salt"]


async def test_none_is_loaded_again_if_the_setting_says_so(start: Start) -> None:
    shop = await start(refill=0)
    await missed(shop, "tea")
    await shop.write()
    assert await refilled(shop) == []


async def test_writes_of_another_process_are_left_to_its_readers(shop: Shop, start: Start) -> None:
    other = await start(refill=2)
    await missed(shop, "tea")
    await other.write()
    assert await refilled(shop) == await refilled(other) == []
    assert (await shop.read())[:2] == (b"new", "miss")


async def test_a_write_during_a_refill_wins(shop: Shop) -> None:
    pause = Pause()
    paused = False

    async def after() -> None:
        if paused:
            await pause()

    await shop.read(after=after)
    await refilled(shop)
    paused = True
    await shop.write("second")
    await pause.reached.wait()  # the refill has read "second"
    await shop.write("third")
    paused = False
    pause.go_on.set()
    await shop.cache.settle()
    assert (await shop.read()).body == b"third"


async def test_a_refill_that_fails_is_left_to_the_next_read(shop: Shop) -> None:
    failing = False

    async def before() -> None:
        if failing:
            raise ConnectionError

    await shop.read(before=before)
    await refilled(shop)
    failing = True
    await shop.write()
    await shop.cache.settle()
    assert counted(shop) == (0, 0)
    assert (await shop.read())[:2] == (b"new", "miss")


async def test_a_process_that_ends_during_a_refill_ends(start: Start) -> None:
    shop, pause, paused = await start(refill=2), Pause(), False

    async def before() -> None:
        if paused:
            await pause()

    await shop.read(before=before)
    await refilled(shop)
    paused = True
    await shop.write()
    await pause.reached.wait()
    closing = asyncio.create_task(shop.cache.close())
    await asyncio.sleep(0)
    pause.go_on.set()
    await closing


async def test_many_entries_of_a_tag_are_loaded_in_pieces_and_the_latest_are_known(start: Start) -> None:
    shop = await start(refill=1000)
    names = [f"item {number}" for number in range(MOST_OF_A_TAG + 10)]
    for name in names:
        await shop.read_together(name)
    await refilled(shop)
    await shop.write()
    loads = await refilled(shop)
    assert counted(shop) == (MOST_OF_A_TAG, 0)
    assert len(loads) >= MOST_OF_A_TAG / MOST_AT_ONCE
    found = [(await shop.read_together(name)).source for name in names]
    assert found == ["miss"] * 10 + ["hit"] * MOST_OF_A_TAG


async def test_reads_with_few_connections_are_not_loaded_again(shop: Shop) -> None:
    async def load(conn: psycopg.AsyncConnection[Any]) -> Loaded:
        shop.loads.append("search")
        return await shop.select(conn, "a", "tea")

    for _ in range(2):
        await shop.cache.get(shop.key(), load, connect=shop.pool.connection)
        assert await refilled(shop) == ["search"]
        await shop.write()
        assert await refilled(shop) == []


async def test_writes_in_quick_succession_share_a_refill(shop: Shop) -> None:
    await missed(shop, "tea")
    await asyncio.gather(*(shop.write(str(number)) for number in range(3)))
    loads = await refilled(shop)
    assert 1 <= len(loads) < 3
