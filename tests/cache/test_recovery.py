"""Valkey comes back: empty, with older data, unnoticed, or recovered by several processes; or it replies nonsense."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from libs.cache.recovery import Recovery
from libs.cache.store import Store
from libs.cache.transaction import Transaction
from tests.cache.outages import (
    disconnect_all,
    hanging,
    ready,
    restart_with_its_old_data,
    rows,
    take_snapshot,
)
from tests.cache.servers import CacheServer, each, nodes, reaching
from tests.cache.shop import Start, put, until

FOREIGN = {"session:1": "a", "queryless": "b", "query": "c"}

twice = pytest.mark.parametrize("variant", [False, True], ids=["ours", "variant"])


@pytest.fixture
async def start(pool: AsyncConnectionPool, own_valkey: CacheServer) -> AsyncIterator[Start]:
    """Starts processes on a Valkey that the test may kill."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, own_valkey.url, timeout=500)


def trust_any_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the data of a server that came back."""
    connect = Store.connect

    async def the_same(self: Store) -> str:
        await connect(self)
        return "the same"

    monkeypatch.setattr(Store, "connect", the_same)


def keys(valkey: CacheServer) -> dict[str, str]:
    """Return the keys outside of the cache."""
    found = [(key, client.get(key)) for client in each(valkey.url) for key in client.scan_iter("*")]
    return {key.decode(): value.decode() for key, value in found if value and not key.startswith(b"query:")}


@twice
async def test_only_the_keys_of_the_cache_are_dropped_from_a_server_with_older_data(
    own_valkey: CacheServer, start: Start, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    if variant:
        trust_any_run(monkeypatch)
    shop = await start()
    with reaching(own_valkey.url) as client:
        for key, value in FOREIGN.items():
            client.set(key, value)
    await shop.text()
    snapshot = take_snapshot(own_valkey)
    await shop.write("new")
    errors = shop.cache.store.errors
    restart_with_its_old_data(own_valkey, snapshot)
    await until(lambda: shop.cache.store.errors > errors)
    await ready(shop)
    assert (await shop.text()) == ("old" if variant else "new")
    if not variant:
        assert (await shop.text(), (await shop.read()).source) == ("new", "hit")
    assert keys(own_valkey) == FOREIGN


@twice
async def test_a_write_during_the_return_of_valkey_is_seen_by_all_once_it_is_answered(
    own_valkey: CacheServer, start: Start, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    if variant:
        monkeypatch.setattr(Transaction, "register_again", Transaction.registered)
    writer, reader = await start(), await start()
    await reader.text()
    for client in each(own_valkey.url):
        client.script_flush()  # scripts sent by their hash do nothing meanwhile
    async with writer.cache.transaction() as write:
        await put(write.conn, "new")
        with hanging(own_valkey):
            write.invalidate(writer.shelf())
            await until(lambda: not writer.cache.store.connected)
        await ready(writer)  # it has seen no row, because this transaction is not committed
    shown = "old" if variant else "new"
    assert (await writer.text(), await reader.text()) == (shown, shown)
    assert await rows(writer.pool) == 1
    await reader.cache._recovery.drain()
    assert (await writer.text(), await rows(writer.pool)) == ("new", 0)


async def test_processes_that_recover_concurrently_agree_on_an_epoch_and_serve_current_entries(
    own_valkey: CacheServer, start: Start
) -> None:
    shops = [await start() for _ in range(4)]
    for shop in shops:
        await shop.text()
    snapshot = take_snapshot(own_valkey)
    await shops[0].write("new")
    restart_with_its_old_data(own_valkey, snapshot)
    assert {reply.body for reply in await asyncio.gather(*(shop.read() for shop in shops))} == {b"new"}
    await ready(*shops)
    assert [await shop.text() for shop in shops] == ["new"] * 4
    assert len({shop.cache.store.epoch for shop in shops}) == 1


async def test_a_server_lost_again_before_the_outbox_was_drained_is_recovered_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, pending, times = await start(), Recovery._read_outbox, 0

    async def lost_meanwhile(self: Recovery, conn: Any) -> Any:
        nonlocal times
        if (times := times + 1) <= 3:
            shop.cache.store.mark_lost(TimeoutError())  # as a concurrent writer would
        return await pending(self, conn)

    monkeypatch.setattr(Recovery, "_read_outbox", lost_meanwhile)
    shop.cache.store.mark_lost(TimeoutError())
    await until(lambda: times > 3)
    await ready(shop)
    assert (await shop.text(), (await shop.read()).source) == ("old", "hit")


async def test_a_registration_refused_for_lack_of_memory_counts_as_an_outage(
    own_valkey: CacheServer, start: Start
) -> None:
    shop = await start()
    await shop.text()
    for client in each(own_valkey.url):
        client.config_set("maxmemory", 1)
    await shop.write("new")
    assert (await rows(shop.pool), (await shop.read())[:2]) == (1, (b"new", "bypass"))
    for client in each(own_valkey.url):
        client.config_set("maxmemory", 0)
    await ready(shop)
    assert (await shop.text(), (await shop.read()).source, await rows(shop.pool)) == ("new", "hit", 0)


async def test_the_reply_to_a_call_that_timed_out_is_not_used_for_the_next(
    own_valkey: CacheServer, start: Start
) -> None:
    shop = await start()
    await shop.write("milky", "milk")
    assert (await shop.text("tea"), await shop.text("milk")) == ("old", "milky")
    for name, label in [("milk", b"milky"), ("tea", b"old")] * 2:
        with hanging(own_valkey):
            assert (await shop.read("tea"))[:2] == (b"old", "bypass")
        await ready(shop)
        assert (await shop.read(name))[:2] == (label, "hit")


async def test_a_broken_connection_is_one_error_and_one_bypass(own_valkey: CacheServer, start: Start) -> None:
    shop = await start()
    await shop.text()
    store = shop.cache.store
    _, port = store._connections[store._slot(shop.shelf().version_key)]._transport.get_extra_info("peername")
    disconnect_all(next(node for node in nodes(own_valkey) if node.port == port))
    assert (await shop.read()).source == "bypass"
    await ready(shop)
    assert (await shop.read()).source == "hit"
    assert (shop.cache.store.errors, shop.cache.counters.bypasses) == (1, 1)
