"""Valkey absent, killed or hanging: no call fails, none waits long, and no reply is stale."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

from libs.cache import CacheSettings, CacheUnavailable, WithoutRedis, server_figures, sizes
from libs.cache.recovery import Recovery
from tests.cache.outages import NOWHERE, hanging, ready, rows
from tests.cache.servers import CacheServer
from tests.cache.shop import Pause, Shop, Start, put, until


@pytest.fixture
async def start(pool: AsyncConnectionPool, own_valkey: CacheServer) -> AsyncIterator[Start]:
    """Starts processes on a Valkey that the test may kill."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, own_valkey.url, CacheSettings().timeout)


async def test_without_valkey_reads_share_loads_and_writes_leave_outbox_rows(
    start: Start, pool: AsyncConnectionPool
) -> None:
    shop = await start(redis_url=NOWHERE)
    replies = await asyncio.gather(*(shop.read() for _ in range(100)))
    assert {(reply.body, reply.source) for reply in replies} == {(b"old", "bypass")}
    assert shop.loads == ["tea"]
    await shop.write("new")
    assert (await shop.text(), await rows(pool)) == ("new", 1)
    assert await server_figures(shop.cache.store) == {"connected": False}
    assert await sizes(shop.cache.store, shop.cache.namespaces.values()) == {}


async def test_a_process_started_before_valkey_uses_it_once_it_is_up(own_valkey: CacheServer, start: Start) -> None:
    own_valkey.kill()
    shop = await start(wait=False)
    assert (await shop.read()).source == "bypass"
    own_valkey.start()
    await ready(shop)
    assert (await shop.text(), (await shop.read()).source) == ("old", "hit")


@pytest.mark.parametrize("outage", ["killed", "hanging"])
async def test_outages_under_load_fail_no_call_and_hide_no_write(
    own_valkey: CacheServer, start: Start, outage: str
) -> None:
    shops = [await start(), await start()]
    over, written, shown = asyncio.Event(), 0, 0

    async def write(shop: Shop) -> None:
        nonlocal written
        while not over.is_set():
            await shop.write(f"{written + 1}")
            written += 1

    async def read(shop: Shop) -> None:
        nonlocal shown
        while not over.is_set():
            least, seen_by_all = max(shown, written), shops[0].cache.store.ready
            body, source, *_ = await shop.read()
            number = 0 if body in (None, b"old") else int(body or 0)
            # `bounded`: a process that reconnects before the writer does is behind until its next poll.
            assert number >= least or (source == "hit" and not seen_by_all)
            shown = max(shown, number)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write(shops[0]))
        for shop in [*shops, *shops]:
            tasks.create_task(read(shop))
        for _ in range(2):
            await run_outage(own_valkey, outage, shops, lambda: written)
        over.set()
    assert (await shops[1].text(), written > 0) == (f"{written}", True)
    assert (await shops[1].read()).source == "hit"


async def run_outage(valkey: CacheServer, outage: str, shops: list[Shop], written: Callable[[], int]) -> None:
    """Run an outage that each process notices, with some writes before, during and after it."""

    async def some_writes() -> None:
        seen = written()
        await until(lambda: written() > seen + 10)

    await some_writes()
    if outage == "killed":
        valkey.kill()
        await until(lambda: not any(shop.cache.store.connected for shop in shops))
        await some_writes()
        valkey.launch()
    else:
        with hanging(valkey):
            await until(lambda: not any(shop.cache.store.connected for shop in shops))
            await some_writes()
    await ready(*shops)
    await some_writes()


async def longest(call: Callable[[], Awaitable[Any]], calls: int) -> list[float]:
    """Return the times of calls, the longest first, in s."""
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        with suppress(CacheUnavailable):
            await call()
        times.append(time.perf_counter() - started)
    return sorted(times, reverse=True)


@pytest.mark.parametrize("what", ["read", "write", "invalidate", "pattern", "figures", "sizes"])
async def test_a_hanging_valkey_delays_one_call_by_one_timeout(
    own_valkey: CacheServer, start: Start, what: str
) -> None:
    shop = await start()
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "read": shop.read,
        "write": shop.write,
        "invalidate": lambda: shop.cache.invalidate(shop.shelf()),
        "pattern": lambda: shop.cache.invalidate_pattern("query:*"),
        "figures": lambda: server_figures(shop.cache.store),
        "sizes": lambda: sizes(shop.cache.store, shop.cache.namespaces.values()),
    }
    timeout = shop.cache.settings.timeout / 1000
    for _ in range(3):  # the fastest counts: the machine may be busy
        await ready(shop)
        await calls[what]()
        with hanging(own_valkey):
            first, *others = await longest(calls[what], 9)
        assert timeout * 0.5 < first
        if first < timeout * 3:
            break
    assert first < timeout * 3
    if what in ("read", "write", "invalidate"):
        assert others[3] < timeout / 3  # the median: Valkey was not called


async def test_a_process_starts_and_stops_while_valkey_hangs(own_valkey: CacheServer, start: Start) -> None:
    with hanging(own_valkey):
        started = time.perf_counter()
        shop = await start(wait=False)
        assert (await shop.read()).body == b"old"
        await shop.cache.close()
        assert time.perf_counter() - started < shop.cache.settings.timeout / 1000 * 6
    assert not [task for task in asyncio.all_tasks() if "libs/cache/" in repr(task)]


async def test_any_process_registers_outbox_rows_of_writes_without_valkey(
    start: Start, pool: AsyncConnectionPool
) -> None:
    reader, drainer, cut_off = await start(), await start(poll=10), await start(redis_url=NOWHERE)
    await reader.text()
    for label in ("one", "two", "three"):
        await cut_off.write(label)
        await until_drained(pool)
        assert await reader.text() == label
        assert (await reader.read()).source == "hit"
    assert drainer.cache.store.ready


async def until_drained(pool: AsyncConnectionPool) -> None:
    async with asyncio.timeout(10):
        while await rows(pool):
            pass


async def test_a_read_only_process_registers_outbox_rows_without_deleting_them(
    start: Start, pool: AsyncConnectionPool, database_url: str
) -> None:
    cut_off = await start(redis_url=NOWHERE)
    await (await start()).cache.close()  # a read-only process uses the cache that others have put in force
    await cut_off.write("new")
    conninfo = make_conninfo(database_url, options="-c default_transaction_read_only=on")
    async with (
        AsyncConnectionPool(conninfo, kwargs={"autocommit": True}, open=False) as read_only,
        AsyncExitStack() as exits,
    ):
        shop = await Start(exits, read_only, start.redis_url)(read_only=True)
        assert (await shop.text(), (await shop.read()).source) == ("new", "hit")
    assert await rows(pool) == 1


async def test_a_row_committed_while_its_tag_is_drained_is_registered(start: Start, pool: AsyncConnectionPool) -> None:
    reader, early, late = await start(), await start(redis_url=NOWHERE), await start(redis_url=NOWHERE)
    await reader.text()
    async with early.cache.transaction(early.shelf()) as write:
        await put(write.conn, "other", "milk")
        await late.write("new")  # a higher ID, committed first
        await reader.cache._recovery._register([(reader.shelf().version_key, write.xact_id + 1)])
    assert (await reader.text(), await reader.text("milk")) == ("new", "other")
    await reader.cache._recovery.drain()
    assert await rows(pool) == 0
    assert (await reader.text(), await reader.text("milk")) == ("new", "other")


async def test_no_hit_is_served_before_the_outbox_is_drained(
    own_valkey: CacheServer, start: Start, pool: AsyncConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await start(), await start(redis_url=NOWHERE)
    await reader.text()
    pause, find = Pause(), Recovery._read_outbox

    async def find_late(self: Recovery, conn: Any) -> Any:
        await pause()
        return await find(self, conn)

    with hanging(own_valkey):
        assert (await reader.read()).source == "bypass"
        monkeypatch.setattr(Recovery, "_read_outbox", find_late)
        await writer.write("new")
    await pause.reached.wait()
    assert (reader.cache.store.connected, reader.cache.store.ready) == (True, False)
    assert (await reader.read())[:2] == (b"new", "bypass")
    pause.go_on.set()
    await ready(reader)
    assert (await reader.text(), await rows(pool)) == ("new", 0)


async def test_refuse_mode_writes_nothing_without_valkey(own_valkey: CacheServer, start: Start) -> None:
    shop = await start(without=WithoutRedis.REFUSE)
    await shop.write("one")
    with hanging(own_valkey), pytest.raises(CacheUnavailable):
        await shop.write("two")  # noticed while the transaction runs
    own_valkey.kill()
    await until(lambda: not shop.cache.store.connected)
    with pytest.raises(CacheUnavailable):
        async with shop.cache.transaction(shop.shelf()):
            raise AssertionError("the block was run")
    assert (await shop.text(), await rows(shop.pool)) == ("one", 0)
    own_valkey.start()
    await ready(shop)
    await shop.write("three")
    assert await shop.text() == "three"
