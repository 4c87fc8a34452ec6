"""Walks over all keys: shared by concurrent calls, and cached for statistics."""

import asyncio

import pytest

from libs.cache import keyspace, sizes
from tests.cache.servers import each, reaching
from tests.cache.shop import Pause, Shop, put
from tests.cache.traffic import valkey_calls

KEYS = 3_000  # at least three calls of SCAN


@pytest.fixture
def crowded(redis_url: str) -> str:
    """A server with keys outside of the cache."""
    with reaching(redis_url) as client:
        for number in range(KEYS):
            client.set(f"session:{number}", "x")
    return redis_url


def scans(url: str) -> int:
    return valkey_calls(url)["scan"]


async def test_concurrent_calls_share_a_walk(crowded: str, shop: Shop) -> None:
    for shelf in ("a", "b", "c"):
        await shop.text(shelf=shelf)
    before = scans(crowded)
    await shop.cache.invalidate_pattern("query:nothing:*")
    one = scans(crowded) - before
    patterns = [f"query:shop:shelf:{{{shelf}}}*" for shelf in "abcdefghij"]
    found = await asyncio.gather(
        *map(shop.cache.invalidate_pattern, patterns),
        *(shop.cache.invalidate(shop.shelf(shelf)) for shelf in "xyz"),
        *(shop.cache.erase(shop.shelf(shelf)) for shelf in "xyz"),
    )
    assert found[:10] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert scans(crowded) - before <= 4 * one
    assert {(await shop.read(shelf=shelf)).source for shelf in "abc"} == {"miss"}


async def test_a_walk_that_has_begun_is_not_shared(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.text()
    pause, unlink = Pause(), shop.cache.store.keyspace._unlink_all
    begun = []

    async def late(what: object) -> list[int]:
        begun.append(what)
        found = await unlink(what)  # type: ignore[arg-type]
        if len(begun) == 1:
            await pause()
        return found

    monkeypatch.setattr(shop.cache.store.keyspace, "_unlink_all", late)
    first = asyncio.create_task(shop.cache.invalidate_pattern("query:*"))
    await pause.reached.wait()
    assert await shop.text() == "old"
    async with shop.pool.connection() as conn:
        await put(conn, "new")
    second = asyncio.create_task(shop.cache.invalidate_pattern("query:*"))
    await asyncio.sleep(0)
    pause.go_on.set()
    assert (await first, await second, await shop.text()) == (1, 1, "new")


async def test_sizes_of_a_large_cache_are_counted_once_a_minute(
    redis_url: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyspace, "LARGE", 10)
    await shop.text()
    assert (await sizes(shop.cache.store, shop.cache.namespaces.values()))["shop"] == 1
    for number in range(10):
        await shop.text(f"item {number}")
    assert (await sizes(shop.cache.store, shop.cache.namespaces.values()))["shop"] == 11
    before = scans(redis_url)
    await shop.text("cocoa")
    assert (await sizes(shop.cache.store, shop.cache.namespaces.values()))["shop"] == 11
    assert scans(redis_url) == before
    shop.cache.store.keyspace._kept_until = 0.0
    assert (await sizes(shop.cache.store, shop.cache.namespaces.values()))["shop"] == 12


async def test_keys_that_are_not_text_do_not_disturb_a_walk(redis_url: str, shop: Shop) -> None:
    await shop.text()
    with reaching(redis_url) as client:
        for key in (b"query:\xff\xfe:x", b"query:", b"query:x", b"query:#meta", b"query:\xff#meta"):
            client.set(key, "x")
    assert (await sizes(shop.cache.store, shop.cache.namespaces.values()))["shop"] == 1
    assert await shop.cache.invalidate_pattern("query:shop:*") >= 1
    assert (await shop.read()).source == "miss"
    assert [client.ping() for client in each(redis_url)]
