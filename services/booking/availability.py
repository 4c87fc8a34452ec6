"""The free slots of resources, and a page of them.

All times are in whole s since 1970. A resource's possible starts are ranges of a step grid, so that they can be counted
and cut without being listed.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

from libs.messages import length_prefix
from libs.server import Page, period, whole_seconds
from parlor.booking.v1.booking_pb2 import SearchAvailabilityRequest, SearchAvailabilityResponse, Slot
from services.booking import opening_hours
from services.booking.opening_hours import Calendar

STARTS_PER_STEP = 250  # the slots of so many starts take about 0.5 ms to encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


class SlotQuery(NamedTuple):
    """The slots to find: they start from `first` to `last`, both inclusive. All fields are in s."""

    first: int
    last: int
    duration: int
    step: int
    buffer_before: int
    buffer_after: int

    @property
    def busy_from(self) -> int:
        """The time before which no booking can block a slot."""
        return self.first - self.buffer_before

    @property
    def busy_until(self) -> int:
        """The time after which no booking can block a slot."""
        return max(self.first, self.last) + self.duration + self.buffer_after


def slot_query(request: SearchAvailabilityRequest, now: datetime) -> SlotQuery:
    """Return the query of a request at a moment. Raises: INVALID_FIELD."""
    start, end = period(request)
    duration = whole_seconds(request, "duration") or 0
    horizon = whole_seconds(request, "horizon")
    first = max(_ceil(start), _ceil(now) + (whole_seconds(request, "minimum_notice") or 0))
    last = _floor(end) - duration
    return SlotQuery(
        first,
        last if horizon is None else min(last, _floor(now) + horizon),
        duration,
        whole_seconds(request, "step") or duration,
        whole_seconds(request, "buffer_before") or 0,
        whole_seconds(request, "buffer_after") or 0,
    )


def search(
    rows: Sequence[Any], resource_ids: Sequence[str], query: SlotQuery, page: Page, limit: int
) -> Iterator[bytes | None]:
    """Yield None where other work may run, and finally the SearchAvailabilityResponse of a page.

    `limit` is as in `free_by_start`, `rows` and `resource_ids` too.
    """
    by_start = yield from free_by_start(rows, resource_ids, query, limit)
    yield (yield from response_of(by_start, page, query.duration))


def free_by_start(
    rows: Sequence[Any], resource_ids: Sequence[str], query: SlotQuery, limit: int
) -> Generator[None, None, dict[int, list[str]]]:
    """Return the ids of the free resources by the start of a slot: those of the first `limit` slots or a few more.

    `rows` are those of resource_queries.availability. Those of `resource_ids` that have no row are free whenever the
    salon is open. Yields where other work may run.
    """
    (_, time_zone, hours, special_hours, _, _), *rows = sorted(rows, key=lambda row: row[0] or "")
    zone, salon = ZoneInfo(time_zone), opening_hours.calendar(hours, special_hours)
    salon_starts = starts_on_grid(salon, zone, query)
    free = dict.fromkeys(resource_ids, salon_starts)
    for resource_id, active, hours, special_hours, busy_starts, busy_ends in rows:
        calendar = opening_hours.intersection(salon, hours, special_hours)
        starts = salon_starts if calendar is salon else starts_on_grid(calendar, zone, query)
        free[resource_id] = [] if active is None else _free_starts(starts, busy_starts or (), busy_ends or (), query)
        yield
    last = yield from _last_start(list(free.values()), limit)
    by_start: dict[int, list[str]] = defaultdict(list)
    for resource_id in sorted(free):
        for some in free[resource_id]:
            for start in some if some[-1] <= last else some[: bisect_right(some, last)]:
                by_start[start].append(resource_id)
        yield
    return by_start


def response_of(by_start: Mapping[int, Sequence[str]], page: Page, duration: int) -> Generator[None, None, bytes]:
    """Return the SearchAvailabilityResponse of a page. Yields where other work may run.

    Serialized messages one after the other are one message, so the response is joined from parts that slots share, each
    serialized once: a sixth of the cost of making the messages (measured).
    """
    after = ((page.after_micros or 0) // 1_000_000, page.after_id or "")
    parts: list[bytes] = []
    left = page.size
    prefixes = _SlotPrefixes(0)
    slot = Slot(start_time=Timestamp(), end_time=Timestamp())
    slot_start, slot_end = slot.start_time, slot.end_time
    for count, start in enumerate(sorted(by_start), 1):
        ids = by_start[start] if start > after[0] else [name for name in by_start[start] if (start, name) > after]
        shown = ids[:left]
        if shown:
            slot_start.seconds, slot_end.seconds = start, start + duration
            times = slot.SerializeToString()
            if len(times) != prefixes.times_size:
                prefixes = _SlotPrefixes(len(times))
            parts += times.join(map(prefixes.__getitem__, shown)), times
            after, left = (start, shown[-1]), left - len(shown)
        if len(shown) < len(ids):
            token = page.token(after[0] * 1_000_000, after[1])
            parts.append(SearchAvailabilityResponse(next_page_token=token).SerializeToString())
            break
        if count % STARTS_PER_STEP == 0:
            yield
    return b"".join(parts)


class _SlotPrefixes(dict[str, bytes]):
    """The bytes of a slot before its times, by resource_id. They contain the slot's size; `times_size` is in bytes."""

    def __init__(self, times_size: int) -> None:
        self.times_size = times_size

    def __missing__(self, resource_id: str) -> bytes:
        resource = Slot(resource_id=resource_id).SerializeToString()
        self[resource_id] = length_prefix(len(resource) + self.times_size) + resource
        return self[resource_id]


def starts_on_grid(calendar: Calendar, zone: ZoneInfo, query: SlotQuery) -> list[range]:
    """Return the starts of slots within a calendar's hours, bookings ignored: a range for each open interval."""
    if query.first > query.last:
        return []
    found: list[range] = []
    for begin, end in opening_hours.open_intervals(calendar, zone, query.first, query.last + query.duration):
        first = begin + max(0, -((begin - query.first) // query.step)) * query.step
        found.append(range(first, end - query.duration + 1, query.step))
    return [starts for starts in found if starts]


def _free_starts(
    grid: Sequence[range], busy_starts: Sequence[int], busy_ends: Sequence[int], query: SlotQuery
) -> list[range]:
    """Return the starts of a grid whose slots keep their buffers from the busy times, which are merged and sorted."""
    found: list[range] = []
    last_before = [start - query.duration - query.buffer_after for start in busy_starts]
    first_after = [end + query.buffer_before for end in busy_ends]
    for starts in grid:
        first, position = starts.start, 0
        low, high = bisect_right(first_after, first), bisect_left(last_before, starts[-1])
        for last_free, next_free in zip(last_before[low:high], first_after[low:high], strict=True):
            stop = (last_free - first) // query.step + 1
            if stop > position:
                found.append(starts[position:stop])
            position = -((first - next_free) // query.step)
        if position < len(starts):
            found.append(starts[position:])
    return found


def _last_start(grids: Sequence[Sequence[range]], limit: int) -> Generator[None, None, int]:
    """Return the earliest start up to which the grids have `limit` starts, or the last start if they have fewer.

    A binary search over time that counts the starts of ranges and lists none. Yields where other work may run.
    """
    grids = [grid for grid in grids if grid]
    total, low, high = 0, 0, 0
    for grid in grids:
        first, last = min([starts[0] for starts in grid]), max([starts[-1] for starts in grid])
        low, high = min(low, first) if total else first, max(high, last)
        total += sum(map(len, grid))
        yield
    if total <= limit:
        return high
    before = 0  # starts in ranges that end before `low`, which are dropped
    while low < high:
        middle = (low + high) // 2
        count, narrower = before, []
        for grid in grids:
            count += sum([bisect_right(starts, middle) for starts in grid])
            yield
        for grid in grids:
            if count >= limit:
                narrower.append([starts for starts in grid if starts[0] <= middle])
            else:
                before += sum([len(starts) for starts in grid if starts[-1] <= middle])
                narrower.append([starts for starts in grid if starts[-1] > middle])
            yield
        low, high = (low, middle) if count >= limit else (middle + 1, high)
        grids = [grid for grid in narrower if grid]
    return low


def _ceil(moment: datetime) -> int:
    return -((_EPOCH - moment) // _SECOND)


def _floor(moment: datetime) -> int:
    return (moment - _EPOCH) // _SECOND
