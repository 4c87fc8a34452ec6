"""Loads that share a statement: which do, and that the failure of one does not affect the others."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
import pytest

from libs.cache import Reply
from libs.cache.loader import MAX_FILL_BYTES, MAX_ROWS
from tests.cache.shop import Pause, Shop

SIZE = MAX_FILL_BYTES // 2


class LoadResult(NamedTuple):
    """The result of a load for one argument."""

    xmin: int
    value: str | Exception | None


class Shelves:
    """A shop whose items are loaded in batches; `batches` are the names loaded by each statement."""

    def __init__(self, shop: Shop) -> None:
        """Begin without loads."""
        self.shop = shop
        self.pause = Pause()
        self.batches: list[list[str]] = []

    async def read(self, name: str, rows: int = 1) -> Reply:
        """Read an item; names of the same length share a batch key."""
        return await self.shop.cache.get_batched(self.shop.key(name), name, self.load, batch=len, rows=rows)

    async def load(self, conn: psycopg.AsyncConnection[Any], names: Sequence[str]) -> list[Any]:
        """Load items; `slow` waits for the test, `lost` is an error, and names with `large` are large."""
        self.batches.append(list(names))
        if "slow" in names:
            await self.pause()
        found = await self.shop.select_many(conn, [("a", name) for name in names])
        return [
            LoadResult(loaded.xmin, KeyError() if name == "lost" else "x" * SIZE if "large" in name else loaded.value)
            for name, loaded in zip(names, found, strict=True)
        ]


@pytest.fixture
def shelves(shop: Shop) -> Shelves:
    return Shelves(shop)


async def test_only_arguments_of_one_batch_key_share_a_statement(shelves: Shelves) -> None:
    await asyncio.gather(*(shelves.read(name) for name in ("tea", "ale", "milk", "mead")))
    assert sorted(shelves.batches) == [["milk", "mead"], ["tea", "ale"]]


async def test_a_statement_reads_a_bounded_number_of_rows_but_at_least_one_argument(shelves: Shelves) -> None:
    sizes = {"a": MAX_ROWS // 2, "b": MAX_ROWS // 2, "c": 1, "d": 2 * MAX_ROWS, "e": 1}
    await asyncio.gather(*(shelves.read(name, rows) for name, rows in sizes.items()))
    assert shelves.batches == [["a", "b"], ["c"], ["d"], ["e"]]


async def test_an_argument_that_the_database_refuses_fails_alone(shelves: Shelves) -> None:
    replies = await asyncio.gather(*(shelves.read(name) for name in ("tea", "t\0a", "ale")), return_exceptions=True)
    assert isinstance(replies[1], psycopg.DataError)
    assert [reply.body for reply in replies if isinstance(reply, Reply)] == [b"old", None]
    assert shelves.batches == [["tea", "t\0a", "ale"], ["tea"], ["t\0a"], ["ale"]]


async def test_an_error_for_one_argument_fails_only_its_reads_and_is_not_cached(shelves: Shelves) -> None:
    names = ("lost", "milk", "lost")
    for loads in (1, 2):
        replies = await asyncio.gather(*(shelves.read(name) for name in names), return_exceptions=True)
        assert [type(reply) for reply in replies] == [KeyError, Reply, KeyError]
        await shelves.shop.cache.settle()
        assert len(shelves.batches) == loads
    assert shelves.batches[1] == ["lost"]


async def test_a_slow_statement_does_not_delay_the_next_ones_of_its_batch_key(shelves: Shelves) -> None:
    slow = asyncio.create_task(shelves.read("slow"))
    await shelves.pause.reached.wait()
    behind = await asyncio.gather(*(shelves.read(name) for name in ("milk", "mead")))
    assert [reply.body for reply in behind] == [None, None]
    assert (await shelves.read("cola")).body is None
    assert not slow.done()
    shelves.pause.go_on.set()
    assert (await slow).body is None
    assert shelves.batches == [["slow"], ["milk", "mead"], ["cola"]]


async def test_canceling_a_slow_statement_ends_the_reads_that_wait_behind_it(shelves: Shelves) -> None:
    reads = [asyncio.create_task(shelves.read("slow"))]
    await shelves.pause.reached.wait()
    [task] = shelves.shop.cache.loader._tasks
    reads.append(asyncio.create_task(shelves.read("milk")))
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*reads, return_exceptions=True)
    assert reads[0].cancelled()


async def test_large_entries_are_stored_with_several_commands(shelves: Shelves) -> None:
    names = [f"large {number}" for number in range(5)]
    await asyncio.gather(*(shelves.read(name) for name in names))
    await shelves.shop.cache.settle()
    await asyncio.gather(*(shelves.read(name) for name in names))
    await shelves.shop.cache.settle()
    assert {(await shelves.read(name)).source for name in names} == {"hit"}
