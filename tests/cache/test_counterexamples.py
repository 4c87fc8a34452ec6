"""Each step of the protocol is needed: without it, an interleaving shows a reader a row that a finished write replaced.

Every test runs twice: against the library, which must show the write, and against the variant of the test's name, which
must not. So each test is able to fail.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from libs.cache import MAX_AGE, Cache, Transaction
from libs.cache.recovery import Recovery
from ops.process import free_port
from tests.cache import variants
from tests.cache.near_cache import LEASE, LEASE_MS, PUSH, Single, kept
from tests.cache.shop import Pause, Shop, Start, lose, until

twice = pytest.mark.parametrize("variant", [False, True], ids=["ours", "variant"])


class Killed(Exception):
    """The process died here."""


async def die(*_: Any) -> None:
    raise Killed


def after_commit(monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[None]]) -> None:
    """Do something immediately after a COMMIT has been answered."""
    commit = Transaction.commit

    async def commit_then(self: Transaction) -> None:
        await commit(self)
        await then()

    monkeypatch.setattr(Transaction, "commit", commit_then)


@twice
async def test_delete_after_commit_lets_a_slow_reader_store_the_old_row(start: Start, variant: bool) -> None:
    shop = await start()
    if variant:
        shop = variants.CacheAside(shop.cache, shop.pool)
    pause = Pause()
    slow = asyncio.create_task(shop.read(after=pause))
    await pause.reached.wait()
    await shop.write("new")
    pause.go_on.set()
    await slow
    assert await shop.text() == ("old" if variant else "new")


@twice
async def test_register_after_commit_is_lost_with_the_writer(
    start: Start, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    writer, reader = await start(), await start()
    if variant:
        writer = variants.RegistersAfterCommit(writer.cache, writer.pool)
    assert await reader.text() == "old"
    after_commit(monkeypatch, die)
    with pytest.raises(Killed):
        await writer.write("new")
    assert await reader.text() == ("old" if variant else "new")


@twice
async def test_register_after_commit_shows_the_old_row_after_the_new_one(
    start: Start, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    writer, reader = await start(), await start()
    if variant:
        writer = variants.RegistersAfterCommit(writer.cache, writer.pool)
    assert await reader.text() == "old"
    pause = Pause()
    after_commit(monkeypatch, pause)
    writing = asyncio.create_task(writer.write("new"))
    await pause.reached.wait()
    past_the_cache = MAX_AGE.set(0)
    assert await reader.text() == "new"
    MAX_AGE.reset(past_the_cache)
    assert await reader.text() == ("old" if variant else "new")
    pause.go_on.set()
    await writing


@twice
async def test_register_without_stamp_lets_a_reader_in_between_store_the_old_row(start: Start, variant: bool) -> None:
    writer, reader = await start(), await start()
    if variant:
        variants.without_stamp(reader)
    async with writer.writing("new"):
        assert await reader.text() == "old"
    assert await reader.text() == ("old" if variant else "new")


@twice
async def test_stamp_after_load_covers_a_write_that_the_load_did_not_see(start: Start, variant: bool) -> None:
    writer, reader = await start(), await start()
    if variant:
        reader = variants.StampsAfterLoad(reader.cache, reader.pool)
    await reader.text("milk")  # the tag is warm
    pause = Pause()
    async with writer.writing("new"):
        slow = asyncio.create_task(reader.read(after=pause))
        await pause.reached.wait()
    pause.go_on.set()
    await slow
    assert await reader.text() == ("old" if variant else "new")


@twice
async def test_counter_version_repeats_after_data_loss(start: Start, redis_url: str, variant: bool) -> None:
    anybody = redis_url.replace("://", "://default:any@")  # may INCR
    shop = await start(redis_url=anybody, prepare=variants.counts_versions if variant else lambda _: None)
    assert await shop.text() == "old"
    lose(redis_url, "query:*#meta")
    lose(redis_url, "query:*:count")
    await shop.write("new")
    assert await shop.text() == ("old" if variant else "new")


@twice
async def test_client_version_is_revived_by_a_late_copy(start: Start, variant: bool) -> None:
    shop = await start(prepare=variants.makes_versions_on_the_client if variant else lambda _: None)
    store, calls = shop.cache.store, []
    run = store._run

    async def recorded(script: str, keys: Sequence[str], *args: Any) -> Any:
        if script == store.register_script:
            calls.append((script, keys, *args))
        return await run(script, keys, *args)

    store._run = recorded  # type: ignore[method-assign]
    await shop.write("one")
    assert await shop.text() == "one"
    await shop.write("two")
    await run(*calls[0])
    assert await shop.text() == ("one" if variant else "two")


@twice
async def test_no_cold_barrier_lets_a_writer_commit_behind_a_fill(start: Start, redis_url: str, variant: bool) -> None:
    writer = await start()
    reader = await start(prepare=variants.opens_warm if variant else lambda _: None)
    async with writer.writing("new"):
        lose(redis_url)
        assert await reader.text() == "old"
    assert await reader.text() == ("old" if variant else "new")


@twice
async def test_barrier_from_snapshot_does_not_cover_a_running_writer(
    start: Start, redis_url: str, pool: AsyncConnectionPool, variant: bool
) -> None:
    writer = await start()
    reader = await start(prepare=variants.takes_barriers_from_snapshots if variant else lambda _: None)
    async with pool.connection() as other:
        await Transaction.begin(other, writer.cache.store, ())  # an ID just below the writer's
        async with writer.writing("new"):
            lose(redis_url)
            assert (await reader.read(before=other.commit)).body == b"old"
            await reader.cache.settle()
    assert await reader.text() == ("old" if variant else "new")


@twice
async def test_load_in_a_writing_transaction_stores_rows_that_are_never_committed(start: Start, variant: bool) -> None:
    writer, reader = await start(), await start()
    await reader.text("milk")  # the tag is warm
    connect = reader.cache.loader.connect
    with pytest.raises(Killed):
        async with writer.cache.transaction() as write:
            await write.conn.execute("UPDATE items SET label = 'never'")
            if variant:
                variants.lends(reader.cache, write.conn)
            await reader.text()
            raise Killed
    reader.cache.loader.connect = connect
    assert await reader.text() == ("never" if variant else "old")


@twice
async def test_naive_single_flight_joins_a_load_that_began_before_the_write(start: Start, variant: bool) -> None:
    writer, reader = await start(), await start(variants.JoinsAnyLoad if variant else Cache)
    pause = Pause()
    first = asyncio.create_task(reader.read(after=pause))
    await pause.reached.wait()
    await writer.write("new")
    assert await second_read(reader, pause) == (b"old" if variant else b"new")
    assert (await first).body == b"old"


@twice
async def test_naive_single_flight_joins_a_load_that_may_not_be_stored(start: Start, variant: bool) -> None:
    writer, reader = await start(), await start(variants.JoinsByGeneration if variant else Cache)
    pause = Pause()
    async with writer.writing("new"):
        first = asyncio.create_task(reader.read(after=pause))
        await pause.reached.wait()
    assert await second_read(reader, pause) == (b"old" if variant else b"new")
    assert (await first).body == b"old"


async def second_read(reader: Shop, pause: Pause) -> bytes | None:
    """Read while another load of the key is paused; that load continues once this read has missed."""
    misses = reader.cache.counters.misses
    second = asyncio.create_task(reader.read())
    await until(lambda: reader.cache.counters.misses > misses)
    pause.go_on.set()
    return (await second).body


@twice
@pytest.mark.parametrize("killed_at", ["_register", "_delete"])
async def test_pending_deleted_first_is_lost_with_the_drainer(
    start: Start, monkeypatch: pytest.MonkeyPatch, killed_at: str, variant: bool
) -> None:
    reader, cut_off = await start(), await start(redis_url=f"redis://127.0.0.1:{free_port()}")
    assert await reader.text() == "old"
    await cut_off.write("new")
    kind = variants.DeletesFirst if variant else Recovery
    drainer = kind(reader.cache.store, reader.pool.connection, 60, read_only=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(kind, killed_at, die)
        await drainer.drain()
    await drainer.drain()
    lost = variant and killed_at == "_register"
    assert await reader.text() == ("old" if lost else "new")


@twice
async def test_fence_with_timeout_is_outlived_by_a_paused_writer(start: Start, redis_url: str, variant: bool) -> None:
    writer, reader = await start(), await start()
    if variant:
        writer, reader = (variants.Fenced(shop.cache, shop.pool) for shop in (writer, reader))
    async with writer.writing("new"):
        lose(redis_url)  # the fence has expired, or was evicted
        assert await reader.text() == "old"
    assert await reader.text() == ("old" if variant else "new")


@twice
async def test_tracking_push_only_is_stale_when_the_push_is_lost(single: Single, variant: bool) -> None:
    writer, reader = await single.start(), await single.near(LEASE_MS)
    if variant:
        variants.tracks_push_only(reader.cache)
    await kept(reader)
    single.between.lose = PUSH
    await writer.write("new")
    await asyncio.sleep(LEASE)
    assert await reader.text() == ("old" if variant else "new")
    assert single.between.lost == 1
