"""What SearchAvailability offers: the free slots of resources, and the page of them that is asked for.

All times are in whole s since 1970.
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

STARTS_AT_ONCE = 250  # whose part of a response takes about half a millisecond
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


class Wanted(NamedTuple):
    """Slots from `first` to `last`, both included, so long, so far apart, so far from other bookings."""

    first: int
    last: int
    duration: int
    step: int
    before: int
    after: int

    @property
    def busy_from(self) -> int:
        """From when on a booking may be in the way."""
        return self.first - self.before

    @property
    def busy_until(self) -> int:
        """Until when a booking may be in the way."""
        return max(self.first, self.last) + self.duration + self.after


def wanted(request: SearchAvailabilityRequest, now: datetime) -> Wanted:
    """Return what a request asks for at a moment. Raises: INVALID_FIELD."""
    start, end = period(request)
    duration = whole_seconds(request, "duration") or 0
    horizon = whole_seconds(request, "horizon")
    first = max(_up(start), _up(now) + (whole_seconds(request, "minimum_notice") or 0))
    last = _down(end) - duration
    return Wanted(
        first,
        last if horizon is None else min(last, _down(now) + horizon),
        duration,
        whole_seconds(request, "step") or duration,
        whole_seconds(request, "buffer_before") or 0,
        whole_seconds(request, "buffer_after") or 0,
    )


def search(
    rows: Sequence[Any], resource_ids: Sequence[str], want: Wanted, page: Page, most: int
) -> Iterator[bytes | None]:
    """Yield None where other work may run, and at last the SearchAvailabilityResponse of a page.

    The page is made of the first `most` slots or some more. `rows` and `resource_ids` are as in `free`.
    """
    by_start = yield from free(rows, resource_ids, want, most)
    yield (yield from page_of(by_start, page, want.duration))


def free(
    rows: Sequence[Any], resource_ids: Sequence[str], want: Wanted, most: int
) -> Generator[None, None, dict[int, list[str]]]:
    """Return the resources that are free at each start of a slot, in order: of the first `most` slots or some more.

    `rows` are those of resource_queries.availability. Of `resource_ids` those that have none are free like the salon.
    """
    (_, time_zone, opening, special, _, _), *rows = sorted(rows, key=lambda row: row[0] or "")
    zone, salon = ZoneInfo(time_zone), opening_hours.calendar(opening, special)
    shared = starts(salon, zone, want)
    found = dict.fromkeys(resource_ids, shared)
    for resource_id, active, working, special, begins, ends in rows:
        own = opening_hours.narrowed(salon, working, special)
        grid = shared if own is salon else starts(own, zone, want)
        found[resource_id] = [] if active is None else _without(grid, begins or (), ends or (), want)
        yield
    until = yield from _until(list(found.values()), most)
    by_start: dict[int, list[str]] = defaultdict(list)
    for resource_id in sorted(found):
        for ranged in found[resource_id]:
            for start in ranged if ranged[-1] <= until else ranged[: bisect_right(ranged, until)]:
                by_start[start].append(resource_id)
        yield
    return by_start


def page_of(by_start: Mapping[int, Sequence[str]], page: Page, duration: int) -> Generator[None, None, bytes]:
    """Return the SearchAvailabilityResponse of a page.

    Its bytes are put together from parts that slots share, each made once, since serialized messages one after the
    other are one message: a sixth of the cost of making the messages (measured).
    """
    after = ((page.after_micros or 0) // 1_000_000, page.after_id or "")
    parts: list[bytes] = []
    left = page.size
    heads = _Heads(0)
    slot = Slot(start_time=Timestamp(), end_time=Timestamp())
    begin, end = slot.start_time, slot.end_time
    for count, start in enumerate(sorted(by_start), 1):
        names = by_start[start] if start > after[0] else [name for name in by_start[start] if (start, name) > after]
        shown = names[:left]
        if shown:
            begin.seconds, end.seconds = start, start + duration
            times = slot.SerializeToString()
            if len(times) != heads.times:
                heads = _Heads(len(times))
            parts += times.join(map(heads.__getitem__, shown)), times
            after, left = (start, shown[-1]), left - len(shown)
        if len(shown) < len(names):
            token = page.token(after[0] * 1_000_000, after[1])
            parts.append(SearchAvailabilityResponse(next_page_token=token).SerializeToString())
            break
        if count % STARTS_AT_ONCE == 0:
            yield
    return b"".join(parts)


class _Heads(dict[str, bytes]):
    """What comes before the times of each resource's slots, which are so many bytes."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __missing__(self, resource_id: str) -> bytes:
        head = Slot(resource_id=resource_id).SerializeToString()
        self[resource_id] = length_prefix(len(head) + self.times) + head
        return self[resource_id]


def starts(calendar: Calendar, zone: ZoneInfo, want: Wanted) -> list[range]:
    """Return the starts on the step grid of each stretch of a calendar, whatever is booked."""
    if want.first > want.last:
        return []
    found: list[range] = []
    for begin, end in opening_hours.stretches(calendar, zone, want.first, want.last + want.duration):
        first = begin + max(0, -((begin - want.first) // want.step)) * want.step
        found.append(range(first, end - want.duration + 1, want.step))
    return [free for free in found if free]


def _without(grid: Sequence[range], begins: Sequence[int], ends: Sequence[int], want: Wanted) -> list[range]:
    """Return the starts of a grid whose slots keep their buffers from what is busy, which is in order and apart."""
    found: list[range] = []
    closes = [begin - want.duration - want.after for begin in begins]  # later starts come too close
    opens = [end + want.before for end in ends]  # from then on they do not
    for free in grid:
        first, count = free.start, 0
        at, most = bisect_right(opens, first), bisect_left(closes, free[-1])
        for close, opened in zip(closes[at:most], opens[at:most], strict=True):
            until = (close - first) // want.step + 1
            if until > count:
                found.append(free[count:until])
            count = -((first - opened) // want.step)
        if count < len(free):
            found.append(free[count:])
    return found


def _until(grids: Sequence[Sequence[range]], most: int) -> Generator[None, None, int]:
    """Return the start by which there are `most`, or all: they are counted, not made."""
    grids = [grid for grid in grids if grid]
    total, low, high = 0, 0, 0
    for grid in grids:
        first, last = min([free[0] for free in grid]), max([free[-1] for free in grid])
        low, high = min(low, first) if total else first, max(high, last)
        total += sum(map(len, grid))
        yield
    if total <= most:
        return high
    before = 0  # how many the ranges have that end before `low`
    while low < high:
        middle = (low + high) // 2
        count, narrower = before, []
        for grid in grids:
            count += sum([bisect_right(free, middle) for free in grid])
            yield
        for grid in grids:
            if count >= most:
                narrower.append([free for free in grid if free[0] <= middle])
            else:
                before += sum([len(free) for free in grid if free[-1] <= middle])
                narrower.append([free for free in grid if free[-1] > middle])
            yield
        low, high = (low, middle) if count >= most else (middle + 1, high)
        grids = [grid for grid in narrower if grid]
    return low


def _up(moment: datetime) -> int:
    return -((_EPOCH - moment) // _SECOND)


def _down(moment: datetime) -> int:
    return (moment - _EPOCH) // _SECOND
