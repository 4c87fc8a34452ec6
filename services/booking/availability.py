"""What SearchAvailability offers: the free slots of resources, and the page of them that is asked for.

All times are in whole s since 1970.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

from libs.rpc import Page, period, prefix, whole_seconds
from parlor.booking.v1.booking_pb2 import SearchAvailabilityRequest, SearchAvailabilityResponse, Slot
from services.booking import hours
from services.booking.hours import Calendar, Stretch

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


def free(rows: Sequence[Any], resource_ids: Sequence[str], want: Wanted) -> dict[int, list[str]]:
    """Return the resources that are free at each start of a slot, in order.

    `rows` are those of resource_queries.availability. Of `resource_ids` those that have none are free like the salon.
    """
    (_, time_zone, opening, special, _, _), *rows = sorted(rows, key=lambda row: row[0] or "")
    zone, salon = ZoneInfo(time_zone), hours.calendar(opening, special)
    shared = starts(salon, zone, want)
    found: dict[str, Sequence[int]] = dict.fromkeys(resource_ids, shared)
    for resource_id, active, working, special, begins, ends in rows:
        own = hours.narrowed(salon, working, special)
        grid = shared if own is salon else starts(own, zone, want)
        busy = zip(begins or (), ends or (), strict=True)
        found[resource_id] = () if active is None else _without(grid, busy, want)
    by_start: dict[int, list[str]] = {}
    for resource_id in sorted(found):
        for start in found[resource_id]:
            by_start.setdefault(start, []).append(resource_id)
    return by_start


def page_of(by_start: Mapping[int, Sequence[str]], page: Page, duration: int) -> bytes:
    """Return the SearchAvailabilityResponse of a page.

    Its bytes are put together from parts that slots share, each made once, since serialized messages one after the
    other are one message: a sixth of the cost of making the messages (measured).
    """
    after = ((page.after_micros or 0) // 1_000_000, page.after_id or "")
    parts: list[bytes] = []
    left = page.size
    heads: dict[int, _Heads] = {}
    slot = Slot(start_time=Timestamp(), end_time=Timestamp())
    for start in sorted(by_start):
        names = by_start[start] if start > after[0] else [name for name in by_start[start] if (start, name) > after]
        shown = names[:left]
        slot.start_time.seconds, slot.end_time.seconds = start, start + duration
        times = slot.SerializeToString()
        head = heads.get(len(times)) or heads.setdefault(len(times), _Heads(len(times)))
        parts += [times.join([head[name] for name in shown]), times] if shown else []
        if shown:
            after, left = (start, shown[-1]), left - len(shown)
        if len(shown) < len(names):
            token = page.token(after[0] * 1_000_000, after[1])
            parts.append(SearchAvailabilityResponse(next_page_token=token).SerializeToString())
            break
    return b"".join(parts)


class _Heads(dict[str, bytes]):
    """What comes before the times of each resource's slots, which are so many bytes."""

    def __init__(self, times: int) -> None:
        self._times = times

    def __missing__(self, resource_id: str) -> bytes:
        head = Slot(resource_id=resource_id).SerializeToString()
        self[resource_id] = prefix(len(head) + self._times) + head
        return self[resource_id]


def starts(calendar: Calendar, zone: ZoneInfo, want: Wanted) -> list[int]:
    """Return the starts on the step grid of each stretch of a calendar, whatever is booked."""
    if want.first > want.last:
        return []
    found: list[int] = []
    for begin, end in hours.stretches(calendar, zone, want.first, want.last + want.duration):
        first = begin + max(0, -((begin - want.first) // want.step)) * want.step
        found += range(first, end - want.duration + 1, want.step)
    return found


def _without(grid: Sequence[int], busy: Iterable[Stretch], want: Wanted) -> Sequence[int]:
    """Return the starts of a grid whose slots keep their buffers from what is busy, which is in order."""
    found: list[int] = []
    at = 0
    for begin, end in busy:
        until = bisect_right(grid, begin - want.duration - want.after, lo=at)
        found += grid[at:until]
        at = bisect_left(grid, end + want.before, lo=until)
    return [*found, *grid[at:]]


def _up(moment: datetime) -> int:
    return -((_EPOCH - moment) // _SECOND)


def _down(moment: datetime) -> int:
    return (moment - _EPOCH) // _SECOND
