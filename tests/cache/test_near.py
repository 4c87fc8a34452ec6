"""The near cache: never behind writes of the same process, and behind others by at most its lease."""

import asyncio

import pytest

from libs.cache import MAX_AGE
from libs.cache.near import OVERHEAD_BYTES
from tests.cache.near_cache import LEASE, LEASE_MS, PUSH, Clock, Single, kept, near
from tests.cache.servers import each
from tests.cache.shop import Start, until
from tests.cache.traffic import valkey_calls


async def test_a_near_hit_calls_no_server(start: Start, redis_url: str) -> None:
    reader = await near(start)
    first = await kept(reader)
    calls, loads = valkey_calls(redis_url), len(reader.loads)
    for _ in range(10):
        assert (reply := await reader.read()).source == "near"
        assert reply.body == first.body == b"old"
    assert valkey_calls(redis_url) == calls
    assert len(reader.loads) == loads
    assert reader.cache.counters.near >= 10


async def test_the_age_of_a_near_hit_is_that_of_its_load(start: Start) -> None:
    reader = await near(start)
    await kept(reader)
    await asyncio.sleep(0.05)
    assert 50 <= (await kept(reader)).age_ms < 10_000


async def test_max_age_0_bypasses_the_near_cache(start: Start) -> None:
    reader = await near(start)
    await kept(reader)
    MAX_AGE.set(0)
    assert (await reader.read()).source == "bypass"
    MAX_AGE.set(60)
    assert (await reader.read()).source == "hit"


async def test_a_process_sees_its_writes_at_once(single: Single) -> None:
    shop = await single.near()
    single.between.lose = PUSH
    for number in range(20):
        await kept(shop)
        await shop.write(str(number))
        assert (await shop.read()).body == str(number).encode()


async def test_writes_of_other_processes_are_pushed(start: Start) -> None:
    reader, writer = await near(start), await start()
    await kept(reader)
    drops = reader.cache.store.near.drops
    await writer.write("new")
    await until(lambda: reader.cache.store.near.drops > drops)
    assert (await reader.read()).body == b"new"


async def test_a_write_to_another_tag_drops_nothing(start: Start) -> None:
    reader, writer = await near(start), await start()
    await kept(reader)
    await writer.write("new", shelf="b")
    await writer.read(shelf="b")
    await asyncio.sleep(0.05)
    assert (await reader.read()).source == "near"


@pytest.mark.parametrize("fault", ["none", "lost pushes", "a connection that hangs", "a connection that is cut"])
async def test_no_reply_is_further_behind_than_the_lease(single: Single, fault: str) -> None:
    reader, writer, clock = await single.near(LEASE_MS), await single.start(), Clock()
    for _ in range(2):
        await clock.write(writer)
    await kept(reader)
    single.between.lose = PUSH if fault == "lost pushes" else None
    single.between.blackhole = fault == "a connection that hangs"
    if fault == "a connection that is cut":
        single.between.refuse = True
        single.between.reset()
    if fault == "a connection that hangs":
        await clock.read(reader)  # nothing is near once the lease has ended
    for step in range(60):
        if step % 5 == 0:
            await clock.write(writer)
        await clock.read(reader)
        await asyncio.sleep(LEASE / 15)
    assert clock.furthest <= LEASE
    assert ("near" in clock.sources) == (fault != "a connection that is cut")
    if fault == "lost pushes":
        assert single.between.lost
        assert clock.furthest > 0  # the pushes were missed, so only the lease ended the delay


async def test_a_lost_connection_empties_the_near_cache(single: Single) -> None:
    reader = await single.near()
    await kept(reader)
    single.between.refuse = True
    single.between.reset()
    await until(lambda: not reader.cache.store.ready)
    assert reader.cache.store.near.bytes == 0
    assert (await reader.read()).source == "bypass"


async def test_a_flush_empties_the_near_cache(start: Start, redis_url: str) -> None:
    reader = await near(start)
    await kept(reader)
    for client in each(redis_url):
        client.flushall()
    await until(lambda: reader.cache.store.near.bytes == 0)
    assert (await reader.read()).source == "miss"


async def test_a_pattern_invalidates_near_entries(start: Start) -> None:
    reader = await near(start)
    await kept(reader)
    await reader.cache.invalidate_pattern("query:shop:*")
    assert (await reader.read()).source == "miss"


async def test_its_size_is_limited_and_unread_entries_are_evicted_first(start: Start) -> None:
    """Each shelf is a tag of one item, so the size limits the number of shelves."""
    reader, writer = await near(start), await start()
    label, store = "x" * 100_000, reader.cache.store
    for number in range(12):
        await writer.write(label, shelf=str(number))
        for _ in range(3):
            await reader.read(shelf=str(number))
            await reader.cache.settle()
        await reader.read(shelf="0")
    assert store.near.bytes == 2**20 // (len(label) + OVERHEAD_BYTES) * (len(label) + OVERHEAD_BYTES)
    sources = [(await reader.read(shelf=str(number))).source for number in (0, 1, 11)]
    assert sources == ["near", "hit", "near"]


async def test_a_reply_that_is_too_large_is_not_kept(start: Start) -> None:
    reader = await near(start)
    await reader.write("x" * 2**20)
    await reader.read()
    await reader.cache.settle()
    for _ in range(3):
        assert (await reader.read()).source == "hit"
    assert reader.cache.store.near.bytes == 0


async def test_without_a_lease_nothing_is_kept_or_tracked(start: Start, redis_url: str) -> None:
    reader = await near(start, 0)
    await reader.read()
    await reader.cache.settle()
    for _ in range(3):
        assert (await reader.read()).source == "hit"
    for client in each(redis_url):
        assert not any("t" in connection["flags"] for connection in client.client_list())
