"""Erasure removes every entry of a tag, also those that would not be served."""

import asyncio

from ops.process import free_port
from tests.cache.servers import each
from tests.cache.shop import Pause, Shop, Start


def kept(redis_url: str) -> set[str]:
    """Return the names of all entries."""
    return {key.decode() for client in each(redis_url) for key in client.scan_iter("query:*:tea")}


async def test_erasure_removes_every_entry_of_the_tag_and_no_other(shop: Shop, redis_url: str) -> None:
    shelves = ("a", "a*", "ab", "[ab]", "a?", "a\\")
    for shelf in shelves:
        await shop.text(shelf=shelf)
    assert len(kept(redis_url)) == len(shelves)
    for erased, shelf in enumerate(("a*", "[ab]", "a?", "a\\", "a"), 1):
        await shop.write(shelf=shelf)
        await shop.cache.erase(shop.shelf(shelf))
        assert shop.key(shelf=shelf).entry not in kept(redis_url)
        assert len(kept(redis_url)) == len(shelves) - erased
        assert (await shop.read(shelf=shelf)).body == b"new"
        await shop.cache.settle()
        await shop.cache.erase(shop.shelf(shelf))


async def test_a_load_under_way_does_not_restore_an_erased_entry(start: Start, redis_url: str) -> None:
    reader, writer = await start(), await start()
    await reader.text("milk")  # the tag exists; the key does not
    pause = Pause()
    slow = asyncio.create_task(reader.read(after=pause))
    await pause.reached.wait()
    await writer.write()
    await writer.cache.erase(writer.shelf())
    pause.go_on.set()
    assert (await slow).body == b"old"
    await reader.cache.settle()
    assert kept(redis_url) == set()


async def test_erasure_without_valkey_succeeds(start: Start) -> None:
    cut_off = await start(redis_url=f"redis://127.0.0.1:{free_port()}")
    await cut_off.cache.erase(cut_off.shelf())
