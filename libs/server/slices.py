"""Work that would hold the event loop, done in slices between which everything else runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.001


class Slices:
    """The long work of one process: of all that is under way a slice at a time, in turn.

    So the event loop is held for about one slice between other tasks, however much work there is.
    """

    def __init__(self) -> None:
        """Begin with no work."""
        self._turn = asyncio.Lock()

    async def each(self, steps: Iterator[T | None]) -> AsyncIterator[T]:
        """Yield what an iterator yields except None, with which it says that it may be interrupted."""
        while True:
            async with self._turn:
                end = time.perf_counter() + SLICE_SECONDS
                for found in steps:
                    if found is not None or time.perf_counter() >= end:
                        break
                else:
                    return
            if found is not None:
                yield found
            else:
                await asyncio.sleep(0)
