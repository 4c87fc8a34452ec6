"""Manual invalidation of a tag, a namespace or a pattern, also while a load is under way."""

import asyncio
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from libs.cache import CacheUnavailable
from ops.process import free_port
from tests.cache.shop import Pause, Shop, Start, put

Invalidate = Callable[[Shop], Awaitable[int]]


async def tag(shop: Shop) -> int:
    return await shop.cache.invalidate(shop.shelf())


async def namespace(shop: Shop) -> int:
    return await shop.cache.invalidate_namespace(shop.cache.namespace("shop"))


async def pattern(shop: Shop) -> int:
    return await shop.cache.invalidate_pattern("query:shop:shelf:{a}:te*")


async def pattern_of_a_key(shop: Shop) -> int:
    return await shop.cache.invalidate_pattern(shop.key().entry)


every_way = pytest.mark.parametrize("invalidate", [tag, namespace, pattern, pattern_of_a_key])


async def change(shop: Shop, label: str = "new") -> None:
    """Change the row as a migration would, without the cache."""
    async with shop.pool.connection() as conn:
        await put(conn, label)


@every_way
async def test_a_change_made_without_the_cache_is_shown_after_an_invalidation(
    start: Start, invalidate: Invalidate
) -> None:
    shop, operator = await start(), await start()
    await shop.text()
    await change(shop)
    assert await shop.text() == "old"
    assert await invalidate(operator) == 1
    assert await shop.text() == "new"
    assert (await shop.read()).source == "hit"
    assert operator.cache.counters.invalidations == 1


@every_way
async def test_a_load_under_way_during_an_invalidation_is_not_stored(start: Start, invalidate: Invalidate) -> None:
    shop, operator = await start(), await start()
    await shop.text("milk")  # the tag exists; the key does not
    pause = Pause()
    slow = asyncio.create_task(shop.read(after=pause))
    await pause.reached.wait()
    await change(shop)
    assert await invalidate(operator) == 1
    pause.go_on.set()
    assert (await slow).body == b"old"
    assert await shop.text() == "new"
    assert shop.cache.counters.refused_fills == 1


async def test_other_tags_keep_their_entries(start: Start) -> None:
    shop = await start()
    other = shop.cache.namespace("other").tag("a", "shelf:")
    for shelf in ("a", "b"):
        await shop.text(shelf=shelf)
    await shop.cache.invalidate(shop.shelf("a"), other)
    assert [(await shop.read(shelf=shelf)).source for shelf in ("a", "b")] == ["miss", "hit"]
    await shop.cache.settle()
    await shop.cache.invalidate_namespace(shop.cache.namespace("other"))
    assert [(await shop.read(shelf=shelf)).source for shelf in ("a", "b")] == ["hit", "hit"]


@pytest.mark.parametrize(
    ("glob", "invalidated"),
    [
        ("query:*", {"a", "b", "ab"}),
        ("*", {"a", "b", "ab"}),
        ("query:shop:shelf:{a*", {"a", "ab"}),
        ("query:shop:shelf:{a}*", {"a"}),
        ("query:shop:shelf:{[ab]}:tea", {"a", "b", "ab"}),  # too many are allowed, too few are not
        ("query:shop:shelf:{b}:tea:?", {"b"}),
        ("query:shop:shelf:{c}:*", set()),
        ("other:*", set()),
    ],
)
async def test_a_pattern_invalidates_every_tag_that_may_hold_a_match(
    shop: Shop, glob: str, invalidated: set[str]
) -> None:
    for shelf in ("a", "b", "ab"):
        await shop.text(shelf=shelf)
    assert await shop.cache.invalidate_pattern(glob) == len(invalidated)
    missed = {shelf for shelf in ("a", "b", "ab") if (await shop.read(shelf=shelf)).source == "miss"}
    assert missed == invalidated


async def test_an_invalidation_without_valkey_is_cache_unavailable(start: Start) -> None:
    cut_off = await start(redis_url=f"redis://127.0.0.1:{free_port()}")
    for invalidate in (tag, namespace, pattern):
        with pytest.raises(CacheUnavailable):
            await invalidate(cut_off)
    assert cut_off.cache.counters.invalidations == 0


async def test_a_tag_added_late_in_a_transaction_is_invalidated(shop: Shop) -> None:
    await shop.text()
    async with shop.cache.transaction() as write:
        await put(write.conn, "new")
        write.invalidate(shop.shelf())
    assert await shop.text() == "new"


async def test_a_failed_transaction_changes_nothing(shop: Shop) -> None:
    await shop.text()
    with pytest.raises(psycopg.errors.NotNullViolation):
        async with shop.cache.transaction(shop.shelf()) as write:
            await write.conn.execute("UPDATE items SET label = NULL")
    assert await shop.text() == "old"
