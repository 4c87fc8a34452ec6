"""A writer is cut off from Valkey while readers still reach it: each setting keeps its promise, in real time."""

import asyncio

import pytest

from libs.cache import WithoutRedis
from tests.cache.near_cache import Single
from tests.cache.outages import ready
from tests.cache.shop import Shop, until

POLL = 300


class Readers:
    """Processes that read without a pause, and compare the replies with the acknowledged writes.

    `behind` counts the reads that did not show a write acknowledged before they began; `overdue` counts those of them
    that began after a poll of their process since the write.
    """

    def __init__(self, shops: list[Shop]) -> None:
        """Record the polls of each process."""
        self.shops = shops
        self.answered = self.found = self.reads = self.behind = self.overdue = self.hits = 0
        for shop in shops:
            self._note_looks(shop)

    def _note_looks(self, shop: Shop) -> None:
        watch = shop.cache._recovery
        drain = watch.drain

        async def noted() -> None:
            answered = self.answered
            await drain()
            self.found = max(self.found, answered)

        watch.drain = noted  # type: ignore[method-assign]

    async def read(self, shop: Shop, over: asyncio.Event) -> None:
        """Read until `over` is set."""
        while not over.is_set():
            answered, found = self.answered, self.found
            reply = await shop.read()
            shown = int(reply.body or b"0")
            self.reads += 1
            self.hits += reply.source == "hit"
            self.behind += shown < answered
            self.overdue += shown < found
            await asyncio.sleep(0.001)

    async def write(self, writer: Shop, count: int) -> None:
        """Write `count` times, each time after some reads and hits."""
        for number in range(self.answered + 1, self.answered + 1 + count):
            reads, hits = self.reads + 20, self.hits + 10
            await until(lambda reads=reads, hits=hits: self.reads > reads and self.hits > hits)  # type: ignore[misc]
            await writer.write(f"{number}")
            self.answered = number


@pytest.mark.parametrize("without", [WithoutRedis.WAIT, WithoutRedis.BOUNDED])
async def test_readers_on_the_other_side_of_a_partition_are_behind_only_as_allowed(
    single: Single, without: WithoutRedis
) -> None:
    start, between = single.start, single.between
    shops = [await start(without=without, poll=POLL) for _ in range(2)]
    writer = await start(redis_url=f"redis://127.0.0.1:{between.port}", without=without, poll=POLL)
    await ready(writer)
    await writer.write("0")
    readers, over = Readers(shops), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for shop in [*shops, *shops]:
            tasks.create_task(readers.read(shop, over))
        await readers.write(writer, 5)
        assert readers.behind == 0
        between.refuse = True
        between.reset()
        await readers.write(writer, 10)
        assert not writer.cache.store.connected
        between.refuse = False
        await ready(writer)
        await readers.write(writer, 5)
        over.set()
    assert readers.overdue == 0
    assert (readers.behind > 0) is (without is WithoutRedis.BOUNDED)
