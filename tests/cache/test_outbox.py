"""A very large outbox after a long outage: neither writes nor reads wait for it, and memory is bounded."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from libs.cache import outbox
from libs.cache.recovery import Recovery
from tests.cache.outages import NOWHERE, hanging, ready, rows
from tests.cache.servers import CacheServer
from tests.cache.shop import Pause, Shop, Start, put

MANY = 600_000


@pytest.fixture
async def start(pool: AsyncConnectionPool, own_valkey: CacheServer) -> AsyncIterator[Start]:
    """Starts processes on a Valkey that the test may stop."""
    async with AsyncExitStack() as exits:
        yield Start(exits, pool, own_valkey.url, timeout=500)


def memory_mb() -> float:
    """Return the memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


async def leave(pool: AsyncConnectionPool, tags: int, rows: int) -> None:
    """Insert `rows` outbox rows for `tags` shelves, as writes without Valkey would."""
    async with pool.connection() as conn:
        await conn.execute(
            "INSERT INTO cache_outbox SELECT format('query:shop:shelf:{s%%s}#meta', n %% %s),"
            " pg_current_xact_id()::text::bigint - n / %s FROM generate_series(0, %s) AS n ON CONFLICT DO NOTHING",
            (tags, tags, rows - 1),
        )


async def longest(call: Callable[[str], Awaitable[Any]], over: asyncio.Event) -> float:
    """Call repeatedly until `over` is set; return the longest time of a call, in s."""
    longest, number = 0.0, 0
    while not over.is_set():
        number += 1
        began = time.perf_counter()
        await call(f"{number}")
        longest = max(longest, time.perf_counter() - began)
        await asyncio.sleep(0.002)
    return longest


@pytest.mark.parametrize("tags", [MANY, 5_000, 1], ids=lambda tags: f"{tags} tags")
async def test_writes_and_reads_succeed_while_a_very_large_outbox_is_drained(
    own_valkey: CacheServer, start: Start, pool: AsyncConnectionPool, tags: int
) -> None:
    shop = await start(poll=500)  # a write under way when Valkey is back leaves a row to the next poll
    await asyncio.gather(shop.text(shelf="s0"), shop.text(shelf="other"))
    over = asyncio.Event()
    with hanging(own_valkey):
        await shop.write("new", shelf="s0")
        await leave(pool, tags, MANY)
    before = memory_mb()
    async with asyncio.TaskGroup() as tasks:
        writes = tasks.create_task(longest(lambda label: shop.write(label), over))
        reads = tasks.create_task(longest(lambda label: shop.read(), over))
        peak = before
        async with asyncio.timeout(60):
            while await rows(pool):
                peak = max(peak, memory_mb())
        over.set()
    await ready(shop)
    assert max(writes.result(), reads.result()) < 2
    assert peak - before < 64
    assert await shop.text(shelf="s0") == "new"
    assert (await shop.read(shelf="s0")).source == "hit"


@pytest.fixture
def compacted_by_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no process compact the outbox by itself."""

    async def nothing(_: Recovery) -> None:
        """Leave it as it is."""

    monkeypatch.setattr(Recovery, "_compact", nothing)


@pytest.fixture
def three_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat more than three tags as very many."""
    monkeypatch.setattr(outbox, "MAX_TAGS", 3)


async def write_shelves(shop: Shop, label: str, shelves: str) -> None:
    for shelf in shelves:
        await shop.write(label, shelf=shelf)


async def in_outbox(pool: AsyncConnectionPool) -> list[str]:
    async with pool.connection() as conn:
        cursor = await conn.execute("SELECT tag FROM cache_outbox ORDER BY tag")
        return [row[0] for row in await cursor.fetchall()]


async def compact(pool: AsyncConnectionPool) -> None:
    async with pool.connection() as conn:
        await outbox.compact(conn)


@pytest.mark.usefixtures("compacted_by_test")
async def test_compaction_keeps_one_row_per_tag(start: Start, pool: AsyncConnectionPool) -> None:
    reader, cut_off = await start(), await start(redis_url=NOWHERE)
    await asyncio.gather(reader.text(), reader.text(shelf="b"))
    for number in range(5):
        await write_shelves(cut_off, f"{number}", "ab")
    assert await rows(pool) == 10
    await compact(pool)
    assert await in_outbox(pool) == [reader.shelf("a").version_key, reader.shelf("b").version_key]
    await reader.cache._recovery.drain()
    assert (await reader.text(), await reader.text(shelf="b"), await rows(pool)) == ("4", "4", 0)


@pytest.mark.usefixtures("compacted_by_test")
async def test_a_lower_id_committed_after_the_compaction_is_drained_too(
    start: Start, pool: AsyncConnectionPool
) -> None:
    reader, early, late = await start(), await start(redis_url=NOWHERE), await start(redis_url=NOWHERE)
    await reader.text()
    async with early.cache.transaction(early.shelf()) as write:
        await put(write.conn, "other", "milk")
        for label in ("one", "two"):
            await late.write(label)
        await compact(pool)
        await reader.cache._recovery.drain()
        assert (await reader.text(), await rows(pool)) == ("two", 0)
    assert await rows(pool) == 1
    await reader.cache._recovery.drain()
    assert (await reader.text("milk"), await rows(pool)) == ("other", 0)


@pytest.mark.usefixtures("three_are_many", "compacted_by_test")
@pytest.mark.parametrize("compacted", [False, True], ids=["when drained", "meanwhile"])
async def test_very_many_pending_tags_drop_the_cache(start: Start, pool: AsyncConnectionPool, compacted: bool) -> None:
    reader, cut_off = await start(), await start(redis_url=NOWHERE)
    for shelf in "abcdef":
        await reader.write("old", shelf=shelf)
        await reader.text(shelf=shelf)
    await write_shelves(cut_off, "new", "abcde")
    if compacted:
        await compact(pool)
        assert await in_outbox(pool) == [outbox.EVERYTHING]
        await write_shelves(cut_off, "newer", "ab")
    await reader.cache._recovery.drain()
    assert await in_outbox(pool) == []
    newest = "newer" if compacted else "new"
    assert [await reader.text(shelf=shelf) for shelf in "abcdef"] == [newest, newest, "new", "new", "new", "old"]
    assert (await reader.read(shelf="f")).source == "hit"


@pytest.mark.usefixtures("three_are_many", "compacted_by_test")
async def test_a_load_under_way_while_the_cache_is_dropped_is_not_stored(start: Start) -> None:
    reader, cut_off = await start(), await start(redis_url=NOWHERE)
    await reader.text("milk")
    pause = Pause()
    slow = asyncio.create_task(reader.read(after=pause))
    await pause.reached.wait()
    await write_shelves(cut_off, "new", "abcde")
    await reader.cache._recovery.drain()
    pause.go_on.set()
    assert (await slow).body == b"old"
    assert (await reader.text(), (await reader.read()).source) == ("new", "hit")


@pytest.mark.usefixtures("three_are_many", "compacted_by_test")
async def test_a_read_only_process_drops_the_cache_without_deleting_rows(
    start: Start, pool: AsyncConnectionPool
) -> None:
    await (await start()).cache.close()  # a read-only process uses the cache that others have put in force
    reader, cut_off = await start(read_only=True), await start(redis_url=NOWHERE)
    await reader.text()
    await write_shelves(cut_off, "new", "abcde")
    await reader.cache._recovery.drain()
    assert (await reader.text(), await rows(pool)) == ("new", 5)


@pytest.mark.usefixtures("three_are_many")
async def test_a_process_without_redis_keeps_the_outbox_small(start: Start, pool: AsyncConnectionPool) -> None:
    cut_off = await start(redis_url=NOWHERE, poll=10)
    async with cut_off.cache.transaction(*map(cut_off.shelf, "abcdefgh")) as write:  # a compaction sees all or none
        for shelf in "abcdefgh":
            await put(write.conn, "new", shelf=shelf)
    async with asyncio.timeout(10):
        while await in_outbox(pool) != [outbox.EVERYTHING]:
            pass
    await cut_off.write("newer")
    reader = await start()
    assert (await reader.text(), await reader.text(shelf="h"), await rows(pool)) == ("newer", "new", 0)


@pytest.mark.usefixtures("three_are_many")
async def test_processes_that_compact_drain_and_write_concurrently_do_not_deadlock(
    start: Start, pool: AsyncConnectionPool
) -> None:
    reader, other, cut_off = await start(), await start(), await start(redis_url=NOWHERE)
    for round in range(10):
        await asyncio.gather(
            *(compact(pool) for _ in range(3)),
            *(shop.cache._recovery.drain() for shop in (reader, other)),
            *(cut_off.write(f"{round}", shelf=shelf) for shelf in "abcde"),
        )
    await reader.cache._recovery.drain()
    assert [await reader.text(shelf=shelf) for shelf in "abcde"] == ["9"] * 5
    assert await rows(pool) == 0
