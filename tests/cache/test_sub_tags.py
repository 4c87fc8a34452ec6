"""Sub-tags: a write to the tag leaves their entries, and a new record of a sub-tag inherits the past of its tag."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from libs.cache import Cache, CacheUnavailable, Key, Tag, Transaction
from libs.cache.keys import parent_key
from libs.cache.store import VERSION_LIFETIME_SECONDS
from ops.process import free_port
from tests.cache.servers import each, reaching
from tests.cache.shop import Pause, Shop, Start, lose, put
from tests.cache.traffic import Traffic, traced


class Items(Shop):
    """A shop where each item is a sub-tag of its shelf."""

    def item(self, name: str = "tea", shelf: str = "a") -> Tag:
        """Return an item's tag."""
        return self.shelf(shelf).sub_tag("item", name)

    def key(self, name: str = "tea", shelf: str = "a") -> Key:
        """Return the key of an item."""
        return self.item(name, shelf).key()

    async def write(self, label: str = "new", name: str = "tea", *, shelf: str = "a") -> None:
        """Write an item, and answer."""
        async with self.cache.transaction(self.item(name, shelf)) as write:
            await put(write.conn, label, name, shelf)

    @asynccontextmanager
    async def writing(self, label: str = "new") -> AsyncIterator[Transaction]:
        """Write the item and register the write; the end of the block commits."""
        async with self.cache.transaction(self.item()) as write:
            await put(write.conn, label)
            await write.registered()
            yield write

    async def of_shelf(self) -> str:
        """Return the source of a reply about the whole shelf."""
        reply = await self.cache.get(self.shelf().key("all"), lambda conn: self.select(conn, "a", "tea"))
        await self.cache.settle()
        return reply.source


every_way = pytest.mark.parametrize(
    "invalidate",
    [
        lambda cache: cache.invalidate(cache.namespace("shop").tag("a", "shelf:")),
        lambda cache: cache.invalidate_namespace(cache.namespace("shop")),
        lambda cache: cache.invalidate_pattern("query:shop:shelf:{a}:*"),
    ],
    ids=["tag", "namespace", "pattern"],
)


def items(shop: Shop) -> Items:
    return Items(shop.cache, shop.pool)


@pytest.fixture
async def shop(shop: Shop) -> Items:
    """One process."""
    return items(shop)


async def test_a_sub_tag_of_a_known_tag_is_opened_without_a_barrier(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with traced(database_url, redis_url, tmp_path / "trace") as (pool, connection), AsyncExitStack() as exits:
        shop = items(await Start(exits, pool, redis_url)())

        async def cost(name: str) -> tuple[dict[str, int], int]:
            connection.reset()
            await shop.text(name)
            return connection.valkey, connection.postgres

        await shop.text("first")  # the first call sends more
        assert await cost("unverified") == ({"mget": 1, "evalsha": 2}, 2)
        await shop.of_shelf()
        assert await cost("warm") == ({"mget": 1, "evalsha": 2}, 1)
        assert await cost("warm") == ({"mget": 1}, 0)
        await write_costs_one_call(shop, connection)


async def write_costs_one_call(shop: Items, connection: Traffic) -> None:
    await shop.write()
    connection.reset()
    await shop.write("newer")
    assert (connection.valkey, connection.postgres) == ({"evalsha": 1}, 3)  # BEGIN with the id; the INSERT; COMMIT


async def test_a_write_to_a_sub_tag_invalidates_its_tag_and_no_other_sub_tag(shop: Items) -> None:
    for name in ("tea", "milk"):
        await shop.text(name)
    await shop.of_shelf()
    await shop.write("new")
    assert [(await shop.read(name)).source for name in ("tea", "milk")] == ["miss", "hit"]
    assert await shop.of_shelf() == "miss"
    assert await shop.text() == "new"


async def test_a_write_to_a_tag_leaves_its_sub_tags(shop: Items) -> None:
    await shop.text()
    await shop.of_shelf()
    async with shop.cache.transaction(shop.shelf()):
        pass
    assert ((await shop.read()).source, await shop.of_shelf()) == ("hit", "miss")


async def test_a_write_to_an_unread_sub_tag_leaves_no_record_of_it(shop: Items, redis_url: str) -> None:
    await shop.write("new")
    version_keys = [name for client in each(redis_url) for name in client.scan_iter("query:*#meta")]
    assert version_keys == [shop.shelf().version_key.encode()]
    assert await shop.text() == "new"


@pytest.mark.parametrize("variant", [False, True], ids=["ours", "variant"])
@pytest.mark.parametrize("lost", ["query:*:item:*", "query:*"])
async def test_a_new_sub_tag_record_inherits_the_past_of_its_tag(
    start: Start, redis_url: str, monkeypatch: pytest.MonkeyPatch, lost: str, variant: bool
) -> None:
    """A new record of a sub-tag inherits the past of its tag. The variant registers writes with the sub-tag alone."""
    writer, reader = items(await start()), items(await start())
    await reader.of_shelf()
    if variant:
        monkeypatch.setattr("libs.cache.transaction.parent_key", lambda name: name + "#meta")
    async with writer.writing("new"):
        lose(redis_url, lost)
        assert await reader.text() == "old"
    stale = variant and lost != "query:*"  # without its tag it is unverified
    assert await reader.text() == ("old" if stale else "new")


async def test_a_sub_tag_of_an_unverified_tag_is_unverified(start: Start, redis_url: str) -> None:
    writer, reader = items(await start()), items(await start())
    async with writer.writing("new"):
        lose(redis_url)
        await writer.cache.invalidate(writer.shelf())  # the tag has a record again, without a past
        assert await reader.text() == "old"
    assert await reader.text() == "new"


@every_way
async def test_a_load_of_a_sub_tag_under_way_during_a_bulk_invalidation_is_not_stored(
    start: Start, invalidate: Callable[[Cache], Awaitable[int]]
) -> None:
    shop, operator = items(await start()), await start()
    await shop.of_shelf()
    await shop.text()
    pause = Pause()
    slow = asyncio.create_task(shop.read("milk", after=pause))
    await pause.reached.wait()
    async with shop.pool.connection() as conn:
        await put(conn, "new", "milk")
    assert await invalidate(operator.cache) == 3  # the shelf, tea and milk
    pause.go_on.set()
    assert (await slow).body is None
    assert await shop.text("milk") == "new"
    assert (await shop.read("milk")).source == "hit"


async def test_an_invalidation_of_a_tag_includes_its_sub_tags_and_no_others(shop: Items) -> None:
    for shelf in ("a", "ab"):
        for name in ("tea", "milk"):
            await shop.text(name, shelf=shelf)
    assert await shop.cache.invalidate(shop.shelf()) == 3
    assert [(await shop.read(shelf=shelf)).source for shelf in ("a", "ab")] == ["miss", "hit"]


async def test_a_write_without_valkey_invalidates_the_sub_tag_once_the_outbox_is_drained(start: Start) -> None:
    reader, cut_off = items(await start()), items(await start(redis_url=f"redis://127.0.0.1:{free_port()}"))
    assert await reader.text() == "old"
    await cut_off.write("new")
    await reader.cache._recovery.drain()
    assert await reader.text() == "new"
    with pytest.raises(CacheUnavailable):
        await cut_off.cache.invalidate(cut_off.shelf())


async def test_the_record_of_a_sub_tag_outlives_its_entries_by_far_less_than_that_of_a_tag(
    shop: Items, redis_url: str
) -> None:
    await shop.text()
    await shop.of_shelf()
    with reaching(redis_url) as client:
        entry, part, shelf = (
            client.pttl(name) for name in (shop.key().entry, shop.item().version_key, shop.shelf().version_key)
        )
    ttl = shop.cache.namespace("shop").ttl * 1000
    assert isinstance(entry, int) and isinstance(part, int) and isinstance(shelf, int)
    assert 0.89 * ttl < entry <= ttl < part <= 2 * ttl
    assert shelf > 0.99 * VERSION_LIFETIME_SECONDS * 1000


def test_no_sub_tag_or_entry_shares_a_name_with_a_tag_version_record(shop: Items) -> None:
    shelf = shop.shelf("a}#meta")
    names = {shelf.sub_tag("item", "tea#meta").name, shelf.key("item", "tea#meta").entry, shelf.key("x", "#meta").entry}
    assert not any(name.endswith("#meta") for name in names)
    assert parent_key(shelf.sub_tag("item", "}").name) == parent_key(shelf.version_key) == shelf.version_key
