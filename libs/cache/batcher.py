"""Requests that are made in the same tick of the event loop share one call.

In Python a call costs more than its round trip. One call per batch key runs at a time; requests that come meanwhile
wait for the next one. A request only joins a call that has not started, so an answer is never older than its question.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

MAX_BATCH = 256

Run = Callable[[list[Any]], Awaitable[Sequence[Any]]]
Waiting = dict[Any, list["asyncio.Future[Any]"]]


class Batcher:
    """Batches requests by batch key: those that one call can answer."""

    def __init__(self) -> None:
        """Start without requests."""
        self._waiting: dict[Hashable, Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, batch_key: Hashable, item: Hashable, run: Run) -> asyncio.Future[Any]:
        """Return the future answer for `item` from the next call of `run` for this batch key.

        `run` gets the distinct items and returns their answers in the same order. Every caller gets what it raises. A
        caller that is canceled does not cancel the call.
        """
        waiting = self._waiting.get(batch_key)
        if waiting is None:
            waiting = self._waiting[batch_key] = {}
            task = asyncio.create_task(self._run_batches(batch_key, waiting, run))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.setdefault(item, []).append(future)
        return future

    async def close(self) -> None:
        """Wait for the calls under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run_batches(self, batch_key: Hashable, waiting: Waiting, run: Run) -> None:
        batch: list[list[asyncio.Future[Any]]] = []
        try:
            while waiting:
                items = list(waiting)[:MAX_BATCH]
                batch = list(map(waiting.pop, items))
                try:
                    answers = await run(items)
                    for futures, answer in zip(batch, answers, strict=True):
                        for future in futures:
                            if not future.done():
                                future.set_result(answer)
                except Exception as error:
                    for future in _undone(batch):
                        future.set_exception(error)
        except asyncio.CancelledError:
            for future in _undone([*batch, *waiting.values()]):
                future.cancel()
            raise
        finally:
            del self._waiting[batch_key]


def _undone(batch: list[list["asyncio.Future[Any]"]]) -> list["asyncio.Future[Any]"]:
    return [future for futures in batch for future in futures if not future.done()]
