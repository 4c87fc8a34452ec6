"""Commands that arrive twice or late, and keys that vanish: entries stay correct."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from libs.cache import scripts
from libs.cache.codec import VERSION_BYTES, Entry, Fill
from tests.cache.servers import reaching
from tests.cache.shop import Pause, Shop, Start, lose

Call = Callable[[], Awaitable[Any]]


@pytest.fixture
async def calls(shop: Shop) -> list[tuple[str, Call]]:
    """Every script call of the process, to be replayed."""
    captured: list[tuple[str, Call]] = []
    store, run = shop.cache.store, shop.cache.store._run

    async def call(script: str, keys: Sequence[str], *args: Any) -> Any:
        captured.append((script, lambda: run(script, keys, *args)))
        return await run(script, keys, *args)

    store._run = call  # type: ignore[method-assign]
    return captured


def version(redis_url: str, shop: Shop) -> bytes | None:
    with reaching(redis_url) as client:
        record = client.get(shop.shelf().version_key)
    return bytes(record[:VERSION_BYTES]) if isinstance(record, bytes) else None


async def history(shop: Shop) -> None:
    """Make two writes, each with reads before and after, and one that is rolled back."""
    await shop.text()
    await shop.write("one")
    await shop.text()
    with pytest.raises(ZeroDivisionError):
        async with shop.writing("never"):
            raise ZeroDivisionError
    await shop.text()
    await shop.write("two")


async def test_any_script_replayed_at_any_later_time_keeps_entries_correct(
    shop: Shop, calls: list[tuple[str, Call]]
) -> None:
    await history(shop)
    assert {script for script, _ in calls} == {scripts.OPEN, scripts.REGISTER, scripts.FILL}
    for _, call in list(calls):
        await call()
        assert await shop.text() == "two"
        await call()
        assert (await shop.read()).body == b"two"


async def test_any_two_scripts_replayed_while_a_writer_runs_keep_entries_correct(
    shop: Shop, start: Start, calls: list[tuple[str, Call]]
) -> None:
    writer = await start()
    await history(shop)
    now = "two"
    for number, ((_, first), (_, second)) in enumerate(itertools.permutations(calls[:], 2)):
        async with writer.writing(f"write {number}"):
            await first()
            assert await shop.text() == now
            await second()
            assert await shop.text() == now
        now = f"write {number}"
        await first()
        assert await shop.text() == now


@pytest.mark.parametrize("pattern", ["query:*", "query:*#meta", "query:*tea"])
@pytest.mark.parametrize("moment", range(5))
async def test_keys_lost_at_any_moment_of_a_read_and_a_write_keep_entries_correct(
    start: Start, redis_url: str, pattern: str, moment: int
) -> None:
    writer, reader = await start(), await start()
    moments = iter(range(5))

    def lose_at_the_moment() -> None:
        if next(moments) == moment:
            lose(redis_url, pattern)

    await reader.text()
    lose_at_the_moment()
    before, after = Pause(), Pause()
    slow = asyncio.create_task(reader.read("milk", before=before, after=after))
    await before.reached.wait()
    async with writer.writing("new"):
        lose_at_the_moment()
        before.go_on.set()
        await after.reached.wait()
        assert await asyncio.wait_for(writer.read(), 10) is not None
        lose_at_the_moment()
    lose_at_the_moment()
    after.go_on.set()
    await slow
    lose_at_the_moment()
    assert (await reader.text(), await writer.text()) == ("new", "new")
    assert (await reader.read()).source == "hit"


async def test_no_version_is_ever_repeated(
    shop: Shop, start: Start, redis_url: str, calls: list[tuple[str, Call]]
) -> None:
    seen = []

    async def step(change: Awaitable[Any]) -> None:
        await change
        seen.append(version(redis_url, shop))

    for number in range(5):
        await step(shop.text())
        await step(shop.write(f"{number}"))
        await step(shop.cache.invalidate(shop.shelf()))
        for _, call in calls[:10]:
            await step(call())
        lose(redis_url)
    runs = [made for made, _ in itertools.groupby(seen)]
    assert None not in runs
    assert len(set(runs)) == len(runs)


async def test_opening_a_tag_twice_makes_one_version(shop: Shop, redis_url: str) -> None:
    store, key = shop.cache.store, shop.shelf().version_key
    first, second = await asyncio.gather(store.open(key), store.open(key))
    third = await store.open(key)
    assert first == second == third
    assert first.unverified
    assert first.version == version(redis_url, shop)


async def test_a_load_from_before_the_barrier_is_refused_after_another_load_was_stored(
    start: Start, redis_url: str
) -> None:
    writer, reader = await start(), await start()
    store = reader.cache.store
    async with writer.writing("new"):
        lose(redis_url)
        record = await store.open(reader.shelf().version_key)
        [barrier] = await reader.cache.loader._take_barrier([None])
        async with reader.pool.connection() as conn:
            early = await reader.select(conn, "a", "tea")
    assert (early.value, early.xmin < barrier) == ("old", True)
    await reader.text("milk")
    fill = Fill(reader.key(), record.version, early.xmin, barrier, 60_000, Entry(b"old", 0))
    assert await store.fill([fill]) == 0
    assert await reader.text() == "new"


async def test_a_write_to_an_unverified_tag_leaves_it_unverified(start: Start, redis_url: str) -> None:
    first, second, reader = await start(), await start(), await start()
    async with first.cache.transaction() as lower:
        async with second.writing("new"):
            lose(redis_url)
            assert await reader.text() == "old"
            lower.invalidate(first.shelf())  # its ID is below the one whose registration is lost
            await lower.registered()
            await lower.conn.execute("COMMIT; BEGIN")
            assert await reader.text() == "old"
        assert await reader.text() == "new"
