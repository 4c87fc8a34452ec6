"""The free slots of resources, and a page of them.

All times are in whole s since 1970.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from libs.messages import length_prefix
from libs.server import Page, errors, period, whole_seconds
from parlor.booking.v1.booking_pb2 import SearchAvailabilityRequest, SearchAvailabilityResponse, Slot
from services.booking import reasons, rules
from services.booking.availability_queries import Availability
from services.booking.rules import ceil_seconds, earliest_start, floor_seconds, latest_start
from services.booking.slot_grid import SlotQuery, Times, starts_on_grid, without

STARTS_PER_STEP = 250  # the slots of so many starts take about 0.5 ms to encode


def seconds(request: SearchAvailabilityRequest, now: datetime) -> tuple[int, int]:
    """Return the period in which slots may lie, in s since 1970: an empty one if all of it is in the past.

    Raises: INVALID_FIELD, also for a Duration.
    """
    start, end = period(request)
    for field in ("duration", "step", "minimum_notice", "horizon"):
        whole_seconds(request, field)
    first = max(ceil_seconds(start), ceil_seconds(now))
    return first, max(first, floor_seconds(end))


def check_found(found: Availability | None, request: SearchAvailabilityRequest) -> None:
    """Return if all that a request names exists. Raises: NOT_FOUND of it."""
    salon_id = request.salon_id
    if found is None:
        raise errors.not_found("salon", salon_id)
    if request.service_id and found.duration is None:
        raise errors.not_found("service", f"{salon_id}/{request.service_id}")
    if not found.found_excluded:
        raise errors.not_found("booking", f"{salon_id}/{request.excluding_booking_code.upper()}")
    for resource_id in request.resource_ids:
        if resource_id not in found.resources:
            raise errors.not_found("resource", f"{salon_id}/{resource_id}")


def slot_queries(request: SearchAvailabilityRequest, now: datetime, found: Availability) -> tuple[SlotQuery, SlotQuery]:
    """Return the slots of a request's period, and those of them that are neither too soon nor too late at a moment.

    Raises: INVALID_FIELD.
    """
    start, end = period(request)
    duration = whole_seconds(request, "duration") or found.duration or 0
    step, horizon = whole_seconds(request, "step") or duration, whole_seconds(request, "horizon")
    asked = SlotQuery(ceil_seconds(start), floor_seconds(end) - duration, duration, step, *found.buffers)
    notice = ceil_seconds(now) + (whole_seconds(request, "minimum_notice") or 0)
    latest = [latest_start(now, found.rules), None if horizon is None else floor_seconds(now) + horizon]
    return asked, asked._replace(
        first=max(asked.first, notice, earliest_start(now, found.rules)),
        last=min([asked.last, *(limit for limit in latest if limit is not None)]),
    )


def search(found: Availability, asked: SlotQuery, query: SlotQuery, page: Page) -> Iterator[bytes | None]:
    """Yield None where other work may run, and finally the SearchAvailabilityResponse of a page.

    `asked` and `query` are those of `slot_queries`.
    """
    # The first start of a later page may also have slots that the page before has shown: one per resource.
    by_start = yield from free_by_start(found, query, page.size + len(found.resources))
    if not by_start and page.after_micros is None:
        yield (yield from reasons.response(found, asked, query))
    else:
        yield (yield from response_of(by_start, page, query.duration))


def free_by_start(found: Availability, query: SlotQuery, limit: int) -> Generator[None, None, dict[int, list[str]]]:
    """Return the ids of the free resources by the start of a slot: those of the first `limit` slots or a few more.

    Yields where other work may run.
    """
    salon, salon_off = rules.salon_calendar(found.hours), Times.of(found.time_off)
    salon_starts: Sequence[range] = starts_on_grid(salon, found.zone, query)
    yield
    free: dict[str, Sequence[range]] = {}
    for resource_id, resource in found.resources.items():
        if resource.is_active:
            hours = rules.resource_calendar(found.hours, resource.hours)
            starts = salon_starts if hours is salon else starts_on_grid(hours, found.zone, query)
            for time_off in (salon_off, Times.of(resource.time_off)):
                starts = yield from without(starts, time_off, query.without_buffers())
            free[resource_id] = yield from without(starts, Times.of(resource.busy), query)
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
