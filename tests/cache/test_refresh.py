"""Refresh-ahead: hits that are loaded again after their reply, in namespaces that may lag unregistered writes."""

import asyncio

import pytest

from libs.cache import Cache, CacheSettings, Reply
from libs.cache.refresh_ahead import is_due
from services.namespaces import NAMESPACES
from tests.cache import variants
from tests.cache.shop import Pause, Shop, Start, put

twice = pytest.mark.parametrize("variant", [False, True], ids=["ours", "variant"])
AT_ONCE = {"shop": 1e-6}  # any entry older than a millisecond is due


@pytest.fixture
async def shop(start: Start) -> Shop:
    """A process whose entries are due at once, with one in the cache."""
    shop = await start(refresh=AT_ONCE)
    assert await shop.text() == "old"
    return shop


async def refreshing(shop: Shop, pause: Pause) -> Reply:
    """Return a hit that is loaded again; the load pauses after its statement."""
    async with asyncio.timeout(10):
        while True:
            reply = await shop.read(after=pause)
            assert reply[:2] == (b"old", "hit")
            if shop.cache.counters.refreshes:
                await pause.reached.wait()
                return reply


def age(namespace: str, seconds: float, **settings: float) -> bool:
    """Return whether a hit of an age is due."""
    key = Cache(CacheSettings(refresh=settings), None, bytes, NAMESPACES).namespace(namespace).tag("s").key()  # type: ignore[arg-type]
    return is_due(key, Reply(b"", "hit", int(seconds * 1000)))


async def test_only_statistics_are_due_after_three_fifths_of_their_ttl() -> None:
    assert [age("stats", seconds) for seconds in (0, 71, 86.4, 119)] == [False, False, True, True]
    assert [age("aiAnalytics", seconds) for seconds in (0, 359, 432, 599)] == [False, False, True, True]
    for name in ("salon", "booking", "conversation", "messages", "health"):
        assert not age(name, 86_400)
    assert (age("stats", 119, stats=1.0), age("salon", 1200, salon=0.5)) == (False, True)


async def test_a_due_hit_is_answered_at_once_and_loaded_again_once(shop: Shop) -> None:
    pause = Pause()
    async with shop.pool.connection() as conn:
        await put(conn, "new")  # registers nothing, as a message does with statistics
    await refreshing(shop, pause)
    replies = await asyncio.gather(*(shop.read() for _ in range(100)))
    assert {reply[:2] for reply in replies} == {(b"old", "hit")}
    assert (shop.cache.counters.refreshes, len(shop.loads)) == (1, 2)
    pause.go_on.set()
    await shop.cache.settle()
    assert (await shop.read())[:2] == (b"new", "hit")


@twice
async def test_a_refresh_is_not_stored_under_a_newer_version(start: Start, shop: Shop, variant: bool) -> None:
    if variant:
        variants.fills_any_version(shop.cache)
    writer, pause = await start(), Pause()
    await refreshing(shop, pause)
    await writer.write("new")
    async with asyncio.timeout(10):
        assert (await shop.read())[:2] == (b"new", "miss")  # and does not wait for the refresh
    pause.go_on.set()
    await shop.cache.settle()
    assert (await shop.read()).body == (b"old" if variant else b"new")


async def test_a_failed_refresh_leaves_the_entry_and_is_retried(shop: Shop) -> None:
    async def fail() -> None:
        raise LookupError

    while not shop.cache.counters.refreshes:
        assert (await shop.read(before=fail)).body == b"old"
    await shop.cache.settle()
    async with shop.pool.connection() as conn:
        await put(conn, "new")
    assert (await shop.read()).body == b"old"
    await shop.cache.settle()
    assert (await shop.read()).body == b"new"
