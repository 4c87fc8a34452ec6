"""Ends calls at their deadlines, with one timer for all: a timer each costs more than the rest of the bookkeeping."""

import asyncio
import heapq
from typing import Protocol

TICK_SECONDS = 0.01  # a deadline is met within this time,
FAR_SECONDS = 10.0  # or within ten times of it, if it is farther away: so there are never many ticks
ENDED_AT_ONCE = 64  # calls; a moment later, the next
FARTHEST_SECONDS = 3600.0  # what is farther away than this is no deadline


class Expires(Protocol):
    """A call that ends at a deadline."""

    def expire(self) -> None:
        """End the call."""


class Deadlines:
    """The deadlines of a server's calls, in ticks; times are the event loop's."""

    def __init__(self) -> None:
        """Start with none."""
        self._calls: dict[int, set[Expires]] = {}
        self._ticks: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_tick = 0

    def __len__(self) -> int:
        """Return how many calls there are that have not ended."""
        return sum(map(len, self._calls.values()))

    def add(self, call: Expires, deadline: float, seconds: float) -> int:
        """End a call at its deadline, `seconds` from now; return the tick, which `discard` takes."""
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
        """Forget a call that has ended."""
        if (calls := self._calls.get(tick)) is not None:
            calls.discard(call)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_tick = self._ticks[0]
        self._timer = asyncio.get_running_loop().call_at(self._timer_tick * TICK_SECONDS, self._expire)

    def _expire(self) -> None:
        """End the calls that are due, so many at a time: the handlers of all then end at once."""
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
