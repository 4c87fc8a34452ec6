"""Ends calls at their deadlines, with one timer for all: a timer each costs more than the rest of the bookkeeping."""

import asyncio
import heapq
from typing import Protocol

TICK_SECONDS = 0.01  # precision of deadlines,
FAR_SECONDS = 10.0  # and a tenth of it for those further away than this, to have few ticks
ENDED_AT_ONCE = 64  # calls per turn of the event loop
FARTHEST_SECONDS = 3600.0  # a deadline further away is ignored


class Expires(Protocol):
    """A call that ends at a deadline."""

    def expire(self) -> None:
        """End the call."""


class Deadlines:
    """The deadlines of a server's calls, grouped by ticks; times are the event loop's."""

    def __init__(self) -> None:
        self._calls: dict[int, set[Expires]] = {}
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_tick = 0

    def __len__(self) -> int:
        """Return the number of calls with a deadline that have not ended."""
        return sum(map(len, self._calls.values()))

    def add(self, call: Expires, deadline: float, seconds: float) -> int:
        """End a call at its deadline, `seconds` from now; return the tick, for `discard`."""
        if seconds > FARTHEST_SECONDS:
            return 0
        tick = int(deadline / TICK_SECONDS) + 1
        if seconds > FAR_SECONDS:
            tick += -tick % 10
        if (calls := self._calls.get(tick)) is None:
            calls = self._calls[tick] = set()
            heapq.heappush(self._ticks, tick)
            if self._timer is None or tick < self._timer_tick:
                self._schedule()
        calls.add(call)
        return tick

    def discard(self, call: Expires, tick: int) -> None:
        """Remove a call that has ended."""
        if (calls := self._calls.get(tick)) is not None:
            calls.discard(call)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_tick = self._ticks[0]
        self._timer = asyncio.get_running_loop().call_at(self._timer_tick * TICK_SECONDS, self._expire)

    def _expire(self) -> None:
        """End the calls that are due, some at a time: their handlers all end in the next tick."""
        self._timer = None
        now, ended = asyncio.get_running_loop().time(), 0
        while self._ticks and self._ticks[0] * TICK_SECONDS <= now and ended < ENDED_AT_ONCE:
            calls = self._calls[self._ticks[0]]
            while calls and ended < ENDED_AT_ONCE:
                calls.pop().expire()
                ended += 1
            if not calls:
                del self._calls[heapq.heappop(self._ticks)]
        if self._ticks:
            self._schedule()
