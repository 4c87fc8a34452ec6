"""One call for all that is asked for in a tick of the event loop.

In Python a call costs more than its round trip, so concurrent reads share calls: what is asked for in one tick is
gathered, one call of a lane is under way at a time, and what comes meanwhile gathers for the next. A caller joins only
a call that has not started, so it never gets an answer that is older than its question.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

LARGEST_CALL = 256

Run = Callable[[list[Any]], Awaitable[Sequence[Any]]]
Waiting = dict[Any, list["asyncio.Future[Any]"]]


class Batcher:
    """Lanes of calls; a lane is what can be answered by one call."""

    def __init__(self) -> None:
        """Start with no lane."""
        self._lanes: dict[Hashable, Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, lane: Hashable, key: Hashable, run: Run) -> asyncio.Future[Any]:
        """Return the future answer for `key` out of the lane's next call of `run`.

        `run` gets the different keys asked for and returns as many answers, in their order. What it raises, all get.
        A caller that goes away cancels its future; the call goes on.
        """
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = {}
            task = asyncio.create_task(self._drain(lane, waiting, run))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.setdefault(key, []).append(future)
        return future

    async def close(self) -> None:
        """Wait for the calls under way, even those that nobody waits for any more."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drain(self, lane: Hashable, waiting: Waiting, run: Run) -> None:
        try:
            while waiting:
                keys = list(waiting)[:LARGEST_CALL]
                await _answer(keys, [waiting.pop(key) for key in keys], run)
        finally:
            del self._lanes[lane]
            for futures in waiting.values():  # only if this task was cancelled
                for future in futures:
                    future.cancel()


async def _answer(keys: list[Any], batch: list[list["asyncio.Future[Any]"]], run: Run) -> None:
    """Make one call and give each future its answer, or the error."""
    try:
        answers = of_each(keys, await run(keys))
    except Exception as error:
        for future in _unanswered(batch):
            future.set_exception(error)
    except asyncio.CancelledError:
        for future in _unanswered(batch):
            future.cancel()
        raise
    else:
        for futures, answer in zip(batch, answers.values(), strict=True):
            for future in futures:
                if not future.done():
                    future.set_result(answer)


def of_each(questions: Sequence[Any], answers: Sequence[Any]) -> dict[Any, Any]:
    """Return the answer of each of different questions. Raises: ValueError if there are not as many."""
    if len(answers) != len(questions):
        raise ValueError(f"{len(answers)} answers to {len(questions)} questions")
    return dict(zip(questions, answers, strict=True))


def _unanswered(batch: list[list["asyncio.Future[Any]"]]) -> list["asyncio.Future[Any]"]:
    return [future for futures in batch for future in futures if not future.done()]
