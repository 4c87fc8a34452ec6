"""The possible starts of slots: ranges of a step grid, so that they can be counted and cut without being listed.

All times are in whole s since 1970.
"""

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Sequence
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.booking import opening_hours
from services.booking.opening_hours import Calendar

TIMES_PER_STEP = 4096  # so many times take 2 ms to leave out (measured)


class Times(NamedTuple):
    """Times, merged and sorted: their starts and their ends."""

    starts: Sequence[int] = ()
    ends: Sequence[int] = ()

    @classmethod
    def of(cls, packed: bytes | None) -> "Times":
        """Return times, merged and sorted, from their starts and ends in turn as Postgres's int8send gives them.

        A fraction of the cost of an array in psycopg, and it can be put off until other work has run.
        """
        numbers = array("q", packed or b"")
        if sys.byteorder == "little":
            numbers.byteswap()
        return cls(numbers[::2], numbers[1::2])


class SlotQuery(NamedTuple):
    """The slots to find: they start from `first` to `last`, both inclusive. All fields are in s."""

    first: int
    last: int
    duration: int
    step: int
    buffer_before: int
    buffer_after: int

    def without_buffers(self) -> "SlotQuery":
        """Return the query without buffers: they may lie in a time off, or outside of the hours."""
        return self._replace(buffer_before=0, buffer_after=0)


def starts_on_grid(calendar: Calendar, zone: ZoneInfo, query: SlotQuery) -> list[range]:
    """Return the starts of slots within a calendar's hours: a range for each open interval."""
    if query.first > query.last:
        return []
    found: list[range] = []
    for begin, end in opening_hours.open_intervals(calendar, zone, query.first, query.last + query.duration):
        first = begin + max(0, -((begin - query.first) // query.step)) * query.step
        found.append(range(first, end - query.duration + 1, query.step))
    return [starts for starts in found if starts]


def without(grid: Sequence[range], times: Times, query: SlotQuery) -> Generator[None, None, Sequence[range]]:
    """Return the starts whose slots keep their buffers from some times. Yields where other work may run."""
    if not times.starts:
        return grid
    found: list[range] = []
    last_before = [start - query.duration - query.buffer_after for start in times.starts]
    first_after = [end + query.buffer_before for end in times.ends]
    count = 0
    for starts in grid:
        first, position = starts.start, 0
        low, high = bisect_right(first_after, first), bisect_left(last_before, starts[-1])
        for last_free, next_free in zip(last_before[low:high], first_after[low:high], strict=True):
            if (count := count + 1) % TIMES_PER_STEP == 0:
                yield
            stop = (last_free - first) // query.step + 1
            if stop > position:
                found.append(starts[position:stop])
            position = -((first - next_free) // query.step)
        if position < len(starts):
            found.append(starts[position:])
    return found
