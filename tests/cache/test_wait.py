"""REDIS_WITHOUT=wait: a writer cut off from Valkey is answered once no reader can be shown the state before its write.

The clock of leases is simulated, and processes poll the outbox only when the test does. Like the counterexamples, every
race runs twice: against the library, and without the step that decides it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from libs.cache import Reply, WithoutRedis, lease, outbox
from libs.cache.lease import ReadLease
from libs.cache.recovery import Recovery
from ops.servers import Valkey
from tests.cache import variants
from tests.cache.outages import NOWHERE, ready, rows
from tests.cache.shop import Pause, Shop, Start, put, until

L = 60.0
twice = pytest.mark.parametrize("variant", [False, True], ids=["ours", "variant"])


class Clock:
    """The clock of leases."""

    def __init__(self) -> None:
        """Begin at any time."""
        self.time = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all processes."""
    clock = Clock()
    monkeypatch.setattr(lease, "now", clock)
    return clock


@pytest.fixture
async def reader(start: Start, clock: Clock) -> Shop:
    """A process that reaches Valkey, has a hit, and has just polled the outbox."""
    reader = await start(without=WithoutRedis.WAIT)
    assert (await reader.text(), (await reader.read()).source) == ("old", "hit")
    return reader


@pytest.fixture
async def writer(start: Start, clock: Clock) -> Shop:
    """A process that cannot reach Valkey."""
    return await start(redis_url=NOWHERE, without=WithoutRedis.WAIT)


@asynccontextmanager
async def committed(writer: Shop) -> AsyncIterator["asyncio.Task[None]"]:
    """Write; the block runs while the write is committed and waits. The write must be answered by its end."""
    watch = writer.cache._recovery
    look, looked = watch._are_left, asyncio.Event()

    async def noted(left: Any) -> Any:
        looked.set()
        return await look(left)

    watch._are_left = noted  # type: ignore[method-assign, assignment]
    writing = asyncio.create_task(writer.write("new"))
    await until(lambda: looked.is_set() or writing.done())
    assert await rows(writer.pool) == 1
    yield writing
    await asyncio.wait_for(writing, 10)


async def still_waits(writing: "asyncio.Task[None]") -> bool:
    """Return whether a writer is still not answered after another check of its rows."""
    await asyncio.sleep(3 * 0.05)
    return not writing.done()


@twice
async def test_a_write_is_answered_when_the_leases_taken_before_it_have_ended(
    reader: Shop, writer: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    if variant:
        monkeypatch.setattr(Recovery, "seen", variants.nothing)
    async with committed(writer) as writing:
        assert (await reader.read())[:2] == (b"old", "hit")
        clock.time += L - 0.01
        assert await still_waits(writing) is not variant
        assert (await reader.read())[:2] == (b"old", "hit")  # only if the write has not been answered
        clock.time += 0.1
    assert (await reader.read())[:2] == (b"new", "bypass")


@twice
async def test_no_hit_is_served_after_the_lease_has_ended(
    reader: Shop, writer: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    if variant:
        monkeypatch.setattr(ReadLease, "covers", lambda self, tag: True)
    async with committed(writer):
        clock.time += L * 1.01
    assert (await reader.read())[:2] == ((b"old", "hit") if variant else (b"new", "bypass"))
    await reader.cache._recovery.drain()
    assert (await reader.text(), (await reader.read()).source) == ("new", "hit")


@twice
async def test_a_lease_counts_from_before_its_poll_was_sent(
    reader: Shop, writer: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    if variant:
        monkeypatch.setattr(ReadLease, "renew", variants.renews_from_the_answer(ReadLease.renew))
    pause, find = Pause(), Recovery._read_outbox

    async def answered_late(self: Recovery, conn: Any) -> Any:
        found = await find(self, conn)
        await pause()
        return found

    clock.time += L / 2
    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "_read_outbox", answered_late)
        looking = asyncio.create_task(reader.cache._recovery.drain())
        await pause.reached.wait()
    async with committed(writer):
        clock.time += L / 2
        pause.go_on.set()
        await looking
        assert (await reader.read())[:2] == (b"old", "hit")
        clock.time += L * 0.51
    assert (await reader.read())[:2] == ((b"old", "hit") if variant else (b"new", "bypass"))


@twice
async def test_a_failed_poll_grants_no_lease(
    reader: Shop, writer: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    watch = reader.cache._recovery

    async def fails(conn: Any) -> Any:
        if variant and watch.lease:
            watch.lease.renew(lease.now(), ())
        raise ConnectionError

    async with committed(writer):
        clock.time += L * 0.9
        with monkeypatch.context() as patch, pytest.raises(ConnectionError):
            patch.setattr(watch, "_read_outbox", fails)
            await watch.drain()
        assert (await reader.read())[:2] == (b"old", "hit")
        clock.time += L * 0.11
    assert (await reader.read())[:2] == ((b"old", "hit") if variant else (b"new", "bypass"))


@twice
async def test_pending_tags_are_not_hit_before_they_are_registered(
    reader: Shop, writer: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    if variant:
        monkeypatch.setattr(ReadLease, "renew", variants.renews_for_all_groups(ReadLease.renew))
    await reader.text(shelf="b")
    pause, register = Pause(), Recovery._register

    async def registers_late(self: Recovery, pending: Any) -> None:
        await pause()
        await register(self, pending)

    monkeypatch.setattr(Recovery, "_register", registers_late)
    async with committed(writer):
        clock.time += 1
        looking = asyncio.create_task(reader.cache._recovery.drain())
        await pause.reached.wait()
        clock.time += L - 0.5  # more than L after the commit, less than L after the poll
    assert (await reader.read())[:2] == ((b"old", "hit") if variant else (b"new", "bypass"))
    assert (await reader.read(shelf="b")).source == "hit"
    pause.go_on.set()
    await looking
    assert (await reader.text(), (await reader.read()).source) == ("new", "hit")


@twice
async def test_a_write_is_answered_as_soon_as_another_process_has_registered_it(
    reader: Shop, writer: Shop, clock: Clock, variant: bool
) -> None:
    kind = variants.DeletesFirst if variant else Recovery
    drainer = kind(reader.cache.store, reader.pool.connection, L, read_only=False)
    pause, register = Pause(), drainer._register

    async def registers_late(rows: Any) -> None:
        await pause()
        await register(rows)

    drainer._register = registers_late  # type: ignore[method-assign]
    async with committed(writer) as writing:
        draining = asyncio.create_task(drainer.drain())
        await pause.reached.wait()
        assert await still_waits(writing) is not variant
        assert (await reader.read())[:2] == (b"old", "hit")  # only if the write has not been answered
        pause.go_on.set()
        await draining
    assert (await reader.read())[:2] == (b"new", "miss")
    assert clock.time == Clock().time


@twice
async def test_a_process_suspended_before_its_mget_checks_the_lease_again_for_each_read(
    reader: Shop, writer: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    if variant:
        monkeypatch.setattr(ReadLease, "covers", variants.checks_once_a_tick(ReadLease.covers))

    async def stopped_before_it() -> Reply:
        clock.time += L * 1.01
        return await reader.read()

    async with committed(writer):
        replies = await asyncio.gather(reader.read(), stopped_before_it())  # in the same tick, so they share one MGET
    assert replies[0][:2] == (b"old", "hit")
    assert replies[1][:2] == ((b"old", "hit") if variant else (b"new", "bypass"))


@twice
async def test_a_repeated_reply_to_the_write_waits_as_well(
    reader: Shop, writer: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch, variant: bool
) -> None:
    if variant:
        monkeypatch.setattr(Recovery, "all_seen", variants.nothing)
    async with committed(writer):
        repeated = asyncio.create_task(reader.cache.all_seen())
        assert await still_waits(repeated) is not variant
        assert (await reader.read())[:2] == (b"old", "hit")
        await reader.cache._recovery.drain()
        await asyncio.wait_for(repeated, 10)
    assert (await reader.read())[:2] == (b"new", "miss")
    await asyncio.wait_for(reader.cache.all_seen(), 10)  # no rows are left: returns at once


async def test_a_writer_that_reaches_valkey_again_does_not_wait(start: Start, clock: Clock, own_valkey: Valkey) -> None:
    reader, writer = [await start(redis_url=own_valkey.url, without=WithoutRedis.WAIT) for _ in range(2)]
    await ready(reader, writer)
    assert (await reader.text(), (await reader.read()).source) == ("old", "hit")
    async with writer.cache.transaction() as write:
        await put(write.conn, "new")
        writer.cache.store.mark_lost(TimeoutError())
        write.invalidate(writer.shelf())
        await ready(writer)
    assert (await reader.read())[:2] == (b"new", "miss")
    assert (await rows(writer.pool), clock.time) == (1, Clock().time)


async def test_a_waiting_writer_holds_no_connection(writer: Shop, clock: Clock) -> None:
    async with committed(writer):
        async with AsyncExitStack() as exits:
            for _ in range(writer.pool.max_size):
                await exits.enter_async_context(writer.pool.connection(timeout=5))
        clock.time += L * 1.01


async def test_a_write_is_answered_even_if_postgres_fails_after_its_commit(writer: Shop, clock: Clock) -> None:
    def fails() -> Any:
        raise ConnectionError

    async with committed(writer) as writing:
        writer.cache._recovery._connect = fails
        assert await still_waits(writing)
        clock.time += L * 1.01


async def test_without_postgres_no_hit_is_served_once_the_lease_has_ended(reader: Shop, clock: Clock) -> None:
    assert (await reader.read()).source == "hit"
    clock.time += L
    assert ((await reader.read()).source, await reader.cache.peek(reader.key())) == ("bypass", None)


@pytest.mark.parametrize("most", [10_000, 0], ids=["its tag", "everything"])
async def test_a_write_whose_row_was_compacted_waits_for_the_row_that_replaced_it(
    reader: Shop, writer: Shop, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(outbox, "MAX_TAGS", most)
    async with committed(writer) as writing:
        async with writer.pool.connection() as conn:
            await outbox.compact(conn)
        monkeypatch.setattr(outbox, "MAX_TAGS", 10_000)
        assert await still_waits(writing)
        await reader.cache._recovery.drain()
    assert await reader.text() == "new"


async def test_the_reply_to_very_many_pending_writes_waits_for_the_leases(
    writer: Shop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with committed(writer) as writing:
        monkeypatch.setattr(outbox, "MAX_TAGS", 0)
        seen = asyncio.create_task(writer.cache.all_seen())
        assert await still_waits(seen)
        async with asyncio.timeout(10):
            while not seen.done():
                clock.time += L * 1.01  # its wait may have begun only now
                await asyncio.wait([seen], timeout=0.05)
        await writing
