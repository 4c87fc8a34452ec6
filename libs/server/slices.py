"""Long computations on the event loop, in slices of a millisecond."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.001


class Slices:
    """Runs the long computations of one process one slice at a time, in turn.

    However many there are, other tasks wait for one slice at most.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def each(self, steps: Iterator[T | None]) -> AsyncIterator[T]:
        """Yield the items of `steps` except None. A step that yields None may be interrupted there."""
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
