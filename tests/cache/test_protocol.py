"""The cost and the guarantees of reads and writes while nothing fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import psycopg
import pytest

from libs.cache import CommitUnknown
from tests.cache.shop import Loaded, Pause, Shop, Start, put, until
from tests.cache.traffic import Traffic, traced

TracedShop = tuple[Shop, Traffic]


@pytest.fixture
async def traced_shop(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[TracedShop]:
    """A process with a count of its traffic, after a first call of every script."""
    async with traced(database_url, redis_url, tmp_path / "trace") as (pool, connection), AsyncExitStack() as exits:
        shop = await Start(exits, pool, redis_url)()
        for shelf in "adefgh":  # in a cluster, each server needs each script
            await shop.text("milk", shelf=shelf)
            await shop.write("new", "milk", shelf=shelf)
            await shop.text("milk", shelf=shelf)
        yield shop, connection


async def test_a_hit_is_one_call_to_valkey_and_none_to_postgres(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    connection.reset()
    assert (await shop.read("milk"))[:2] == (b"new", "hit")
    assert (connection.valkey, connection.postgres) == ({"mget": 1}, 0)


async def test_a_miss_of_a_known_tag_is_one_mget_one_statement_and_one_fill(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    connection.reset()
    assert (await shop.read())[:2] == (b"old", "miss")
    await shop.cache.settle()
    assert (connection.valkey, connection.postgres) == ({"mget": 1, "evalsha": 1}, 1)


async def test_the_first_miss_of_an_unknown_tag_costs_one_open_and_one_barrier(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    connection.reset()
    await shop.text("tea", shelf="b")
    assert (connection.valkey, connection.postgres) == ({"mget": 1, "evalsha": 2}, 2)
    connection.reset()
    await shop.text("milk", shelf="b")
    assert (connection.valkey, connection.postgres) == ({"mget": 1, "evalsha": 1}, 1)


async def test_a_write_is_one_call_to_valkey_per_slot_and_no_extra_statement(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    connection.reset()
    async with shop.cache.transaction(shop.shelf("a"), shop.shelf("b")) as write:
        write.invalidate(shop.shelf("c"), shop.shelf("a"))
        await put(write.conn, "new")
    slots = {shop.cache.store._slot(shop.shelf(name).version_key) for name in "abc"}
    assert (connection.valkey, connection.postgres) == (
        {"evalsha": len(slots)},
        3,
    )  # BEGIN with the id; the INSERT; COMMIT
    assert await shop.text() == "new"


async def test_locks_are_taken_in_the_same_round_trip_as_begin(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    connection.reset()
    async with shop.cache.transaction(locks=(3, -5)) as write:
        assert connection.postgres == 1
        cursor = await write.conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert await cursor.fetchone() == (2,)
        assert await (await write.conn.execute("SELECT pg_current_xact_id()::text")).fetchone() == (str(write.xact_id),)


async def test_reads_of_one_tick_share_one_mget(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    await shop.text()
    connection.reset()
    replies = await asyncio.gather(*(shop.read(name) for name in ["tea", "milk"] * 10))
    assert {reply.source for reply in replies} == {"hit"}
    assert (connection.valkey, connection.postgres) == ({"mget": 1}, 0)


async def test_batched_reads_of_one_tick_share_one_statement_and_one_fill(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    connection.reset()
    replies = await asyncio.gather(*(shop.read_together(name) for name in ["tea", "milk", "none", "tea"]))
    await shop.cache.settle()
    assert [(reply.body, reply.source) for reply in replies] == [
        (b"old", "miss"), (b"new", "hit"), (None, "miss"), (b"old", "miss")
    ]  # fmt: skip
    assert (connection.valkey, connection.postgres) == ({"mget": 1, "evalsha": 1}, 1)
    assert (await shop.read("none"))[:2] == (None, "hit")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delay fills until an entry is read."""
    monkeypatch.setattr("libs.cache.loader.FILL_DELAY_SECONDS", 60)


@pytest.mark.usefixtures("late")
async def test_a_read_of_a_pending_fill_hits_and_stores_the_whole_batch(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    connection.reset()
    for name in ("tea", "none"):
        assert (await shop.read_together(name)).source == "miss"
    assert connection.valkey == {"mget": 2}
    assert (await shop.read_together("tea"))[:2] == (b"old", "hit")
    [found] = await shop.cache.get_many([shop.key("none")], [("a", "none")], shop.select_many)
    assert found[:2] == (None, "hit")
    assert (connection.valkey, connection.postgres) == ({"mget": 4, "evalsha": 1}, 2)


@pytest.mark.usefixtures("late")
async def test_get_many_hits_a_pending_fill(traced_shop: TracedShop) -> None:
    shop, connection = traced_shop
    assert (await shop.read_together("tea")).source == "miss"
    connection.reset()
    [found] = await shop.cache.get_many([shop.key("tea")], [("a", "tea")], shop.select_many)
    assert found[:2] == (b"old", "hit")
    assert (connection.valkey, connection.postgres) == ({"mget": 1, "evalsha": 1}, 0)


@pytest.mark.usefixtures("late")
async def test_a_canceled_read_does_not_cancel_the_fill(traced_shop: TracedShop) -> None:
    shop, _ = traced_shop
    assert (await shop.read_together("tea")).source == "miss"
    stored, again = shop.cache.counters.sets, asyncio.create_task(shop.read_together("tea"))
    await asyncio.sleep(0)
    again.cancel()
    await shop.cache.settle()
    assert again.cancelled()
    assert shop.cache.counters.sets == stored + 1


async def test_100_concurrent_misses_run_one_statement(shop: Shop) -> None:
    replies = await asyncio.gather(*(shop.read() for _ in range(100)))
    assert {reply.body for reply in replies} == {b"old"}
    assert shop.loads == ["tea"]


async def test_100_misses_during_a_slow_load_run_one_statement(shop: Shop) -> None:
    await shop.text("milk")
    shop.loads.clear()
    pause = Pause()
    reads = [asyncio.create_task(shop.read(after=pause))]
    await pause.reached.wait()
    for number in range(1, 100):
        reads.append(asyncio.create_task(shop.read(after=pause)))
        await until(lambda wanted=number + 2: shop.cache.counters.misses == wanted)  # type: ignore[misc]
    pause.go_on.set()
    assert {reply.body for reply in await asyncio.gather(*reads)} == {b"old"}
    assert shop.loads == ["tea"]


async def test_misses_of_different_keys_run_one_statement_per_key(shop: Shop) -> None:
    names = [f"item {number}" for number in range(30)]
    await asyncio.gather(*(shop.read(name) for name in names * 10))
    assert sorted(shop.loads) == sorted(names)


async def test_equal_namespaces_share_loads(start: Start) -> None:
    shop = await start(ttl={"shop": 60})
    assert shop.key() != shop.key()  # each call makes a new Namespace
    assert [reply.body for reply in await asyncio.gather(shop.read(), shop.read())] == [b"old", b"old"]
    assert shop.loads == ["tea"]


async def test_a_second_read_hits_after_every_write(start: Start) -> None:
    writer, reader = await start(), await start()
    for label in ("one", "two", "three"):
        await writer.write(label)
        assert (await reader.read())[:2] == (label.encode(), "miss")
        await reader.cache.settle()
        assert (await reader.read())[:2] == (label.encode(), "hit")


async def test_a_transaction_is_registered_while_its_statements_run(start: Start) -> None:
    writer, reader = await start(), await start()
    await reader.text()
    async with writer.cache.transaction(writer.shelf()) as write:
        await put(write.conn, "new")
        await until(lambda: all(answer.done() for answer in write.registrations.values()))
        assert (await reader.read())[:2] == (b"old", "miss")  # the tag already has a new version
    assert await reader.text() == "new"


async def test_a_failed_transaction_writes_nothing_and_returns_its_connection(shop: Shop) -> None:
    for _ in range(20):  # more than the pool has
        with pytest.raises(ZeroDivisionError):
            async with shop.cache.transaction(shop.shelf()) as write:
                await put(write.conn, "new")
                raise ZeroDivisionError
    await shop.cache.store.register([shop.shelf().version_key], 0)  # all earlier requests have been answered, too
    assert (await shop.text(), (await shop.read()).source) == ("old", "hit")


async def test_a_writer_canceled_at_any_await_writes_nothing(shop: Shop) -> None:
    async def write(pause: Pause) -> None:
        async with shop.cache.transaction(shop.shelf()) as write:
            await put(write.conn, "new")
            await pause()

    for ticks in range(20):
        writing = asyncio.create_task(write(Pause()))
        for _ in range(ticks):
            await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    await shop.cache.store.register([shop.shelf().version_key], 0)  # all earlier requests have been answered, too
    assert (await shop.text(), (await shop.read()).source) == ("old", "hit")


async def test_a_canceled_reader_does_not_cancel_the_load_of_others(shop: Shop) -> None:
    pause = Pause()
    first, second = (asyncio.create_task(shop.read(after=pause)) for _ in range(2))
    await pause.reached.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    pause.go_on.set()
    assert (await second).body == b"old"
    await shop.cache.settle()
    assert (shop.loads, (await shop.read()).source) == (["tea"], "hit")


async def test_readers_canceled_at_any_await_break_nothing(shop: Shop) -> None:
    for ticks in range(30):
        reading = asyncio.create_task(shop.read(f"item {ticks}", shelf=f"{ticks}"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
    assert await shop.text() == "old"
    assert shop.cache.store.errors == 0


async def test_a_failed_load_fails_all_its_readers_and_is_not_cached(shop: Shop) -> None:
    async def fail() -> None:
        raise LookupError

    reads = [asyncio.create_task(shop.read(before=fail)) for _ in range(10)]
    assert all([isinstance(error, LookupError) for error in await asyncio.gather(*reads, return_exceptions=True)])
    assert await shop.text() == "old"


async def test_a_load_with_too_few_results_fails_and_so_does_the_next(shop: Shop) -> None:
    async def none(conn: object, wanted: object) -> list[Loaded]:
        return []

    for _ in range(2):
        with pytest.raises(ValueError, match="0 results for 1 arguments"):
            await shop.cache.get_batched(shop.key(), "tea", none)


async def test_a_transaction_with_a_swallowed_error_is_not_acknowledged(shop: Shop) -> None:
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        async with shop.cache.transaction(shop.shelf()) as write:
            await put(write.conn, "new")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await write.conn.execute("SELECT 1 / 0")
    assert await shop.text() == "old"


async def test_a_commit_without_an_answer_is_unknown_and_readers_see_the_row_of_the_database(shop: Shop) -> None:
    await shop.text()
    with pytest.raises(CommitUnknown):
        async with shop.cache.transaction(shop.shelf()) as write, shop.pool.connection() as other:
            await put(write.conn, "new")
            await other.execute("SELECT pg_terminate_backend(%s, 5000)", (write.conn.info.backend_pid,))
    assert await shop.text() == "old"


async def test_counters_count_hits_misses_sets_refusals_bypasses_and_invalidations(start: Start) -> None:
    writer, reader = await start(), await start()
    async with writer.writing("new"):
        await reader.text()  # refused: the writer's transaction runs
    await reader.text()
    await reader.text()
    counters = reader.cache.counters
    assert (counters.hits, counters.misses, counters.sets, counters.refused_fills) == (1, 2, 1, 1)
    assert (counters.bypasses, writer.cache.counters.invalidations, reader.cache.store.errors) == (0, 1, 0)
