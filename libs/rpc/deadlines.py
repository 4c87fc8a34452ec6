"""Ends the RPCs that take too long."""

import asyncio
from typing import Any


class Deadlines:
    """The RPCs under way, each with its timer."""

    def __init__(self, seconds: float) -> None:
        """Give each RPC so long."""
        self._seconds = seconds
        self._timers: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}
        self._expired: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """Return how many RPCs are under way."""
        return len(self._timers)

    def begin(self, task: asyncio.Task[Any]) -> None:
        """Watch over an RPC's task: it is cancelled when its time is over."""
        self._timers[task] = task.get_loop().call_later(self._seconds, self._expire, task)

    def end(self, task: asyncio.Task[Any]) -> None:
        """Watch no longer."""
        self._timers.pop(task).cancel()
        self._expired.discard(task)

    def expired(self, task: asyncio.Task[Any]) -> bool:
        """Say whether it was this that cancelled the task; then its cancellation ends here."""
        if task not in self._expired:
            return False
        task.uncancel()
        return True

    def _expire(self, task: asyncio.Task[Any]) -> None:
        self._expired.add(task)
        task.cancel()
