"""Opening hours in local time, turned into elapsed time; correct across changes of the clock.

An interval is half-open, [start, end). Local intervals count s of a day, or of all days since 1970-01-01; the others
count s since 1970. Lists of intervals are sorted, and intervals that overlap or touch are merged.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

from libs.server import errors
from parlor.booking.v1.booking_pb2 import SpecialHours

Interval: TypeAlias = tuple[int, int]

DAY = 86_400
ALL_DAY: Sequence[Interval] = [(0, DAY)]
# Every calendar begins here: requests start at 1970-01-01 UTC, which is the day before in the west.
FIRST_DAY = -1
_STEP = 3 * DAY  # contains a local day and what a time zone differs from UTC on both sides
_LARGEST_STEP_BACK = 8 * 3600  # of a clock since 1970: Vostok went back 7 h in 1994
_EPOCH = date(1970, 1, 1).toordinal()
_WEEKDAYS = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")


class Calendar(NamedTuple):
    """The hours of each weekday, Monday first, and of the dates with special hours, by their day since 1970-01-01."""

    week: Sequence[Sequence[Interval]]
    dates: Mapping[int, Sequence[Interval]]

    def on(self, day: int) -> Sequence[Interval]:
        """Return the hours of a day."""
        if day < FIRST_DAY:
            return ()
        special = self.dates.get(day)
        return self.week[(day + 3) % 7] if special is None else special


def check_special_hours(field: str, special_hours: Sequence[SpecialHours]) -> None:
    """Raise INVALID_FIELD unless each date exists, and is either closed or has hours."""
    closed = {_ymd(hours.date) for hours in special_hours if not hours.HasField("open_time")}
    for index, hours in enumerate(special_hours):
        try:
            date(*_ymd(hours.date))
        except ValueError as error:
            raise errors.invalid_fields([(f"{field}[{index}].date", "is not a date of the calendar")]) from error
        if hours.HasField("open_time") and _ymd(hours.date) in closed:
            raise errors.invalid_fields([(f"{field}[{index}].open_time", "another entry says that the date is closed")])


def calendar(hours: Sequence[Any], special_hours: Sequence[Any]) -> Calendar:
    """Return the calendar of OpeningHours and SpecialHours, both as JSON."""
    week: dict[str, list[Interval]] = {day: [] for day in _WEEKDAYS}
    for entry in hours:
        week[entry["day_of_week"]].append(_interval(entry))
    dates: dict[int, list[Interval]] = {}
    for entry in special_hours:
        on = entry["date"]
        intervals = dates.setdefault(date(on["year"], on["month"], on["day"]).toordinal() - _EPOCH, [])
        if "open_time" in entry:
            intervals.append(_interval(entry))
    return Calendar(
        [_merge(sorted(intervals)) for intervals in week.values()],
        {day: _merge(sorted(intervals)) for day, intervals in dates.items()},
    )


def intersection(salon: Calendar, working_hours: Sequence[Any], special_hours: Sequence[Any]) -> Calendar:
    """Return when a salon is open and a resource works; without working hours it works whenever the salon is open.

    Returns `salon` itself if the resource has neither working hours nor special hours.
    """
    if not working_hours and not special_hours:
        return salon
    resource = calendar(working_hours, special_hours)
    if not working_hours:
        resource = resource._replace(week=[ALL_DAY] * 7)
    return Calendar(
        [_intersect(*pair) for pair in zip(salon.week, resource.week, strict=True)],
        {day: _intersect(salon.on(day), resource.on(day)) for day in salon.dates.keys() | resource.dates.keys()},
    )


def is_open(hours: Calendar, zone: ZoneInfo, start: int, end: int) -> bool:
    """Return whether a calendar is open from `start` to `end` without a break."""
    return _open(hours, zone, start, end) == [(start, end)]


def open_intervals(hours: Calendar, zone: ZoneInfo, start: int, end: int) -> list[Interval]:
    """Return when a calendar is open between `start` and `end`; the first interval is not cut at `start`."""
    found = [interval for interval in _open(hours, zone, start - DAY, end) if interval[1] > start]
    if found and found[0][0] == start - DAY:
        found[0] = (_open_since(hours, zone, start - DAY), found[0][1])
    return found


def _merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Return intervals, given in the order of their starts, with those merged that overlap or touch."""
    found: list[Interval] = []
    for start, end in intervals:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _ymd(on: Any) -> tuple[int, int, int]:
    return on.year, on.month, on.day


def _interval(entry: Any) -> Interval:
    return _seconds(entry["open_time"]), _seconds(entry["close_time"])


def _seconds(time: Any) -> int:
    return int(time.get("hours", 0) * 3600 + time.get("minutes", 0) * 60)


def _intersect(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    common: list[Interval] = []
    one = other = 0
    while one < len(some) and other < len(others):
        start, end = max(some[one][0], others[other][0]), min(some[one][1], others[other][1])
        if start < end:
            common.append((start, end))
        one, other = (one + 1, other) if some[one][1] == end else (one, other + 1)
    return common


def _open(hours: Calendar, zone: ZoneInfo, start: int, end: int) -> list[Interval]:
    """Return when a calendar is open, cut at `start` and `end`."""
    return _merge(
        (max(open_at - offset, since), min(close_at - offset, until))
        for since, until, offset in _offsets(zone, start, end)
        for open_at, close_at in _local_hours(hours, (since + offset) // DAY, (until + offset - 1) // DAY)
        if open_at - offset < until and close_at - offset > since
    )


def _local_hours(hours: Calendar, first: int, last: int) -> list[Interval]:
    """Return the hours of the days from `first` to `last`, in local s since 1970-01-01."""
    return _merge(
        (day * DAY + start, day * DAY + end) for day in range(first, last + 1) for start, end in hours.on(day)
    )


def _open_since(hours: Calendar, zone: ZoneInfo, start: int) -> int:
    """Return since when a calendar has been open without a break up to `start`.

    Days that are open all day are skipped without a look at the time zone: otherwise a salon that never closes would be
    followed back to 1969 day by day. What is left takes 35 us for each day that has other hours and yet no break, since
    a change of the clock skips the rest of it (measured).
    """
    partial: list[int] = []
    is_always_open = all(times == ALL_DAY for times in hours.week)
    while (earlier := _open(hours, zone, start - _STEP, start)) and earlier[-1][1] == start:
        if earlier[-1][0] > start - _STEP:
            return earlier[-1][0]
        start -= _STEP
        # The local day now, or the next one if the clock may have shown that before.
        day = (start + _offset(zone, start) + _LARGEST_STEP_BACK) // DAY
        if is_always_open:
            partial = partial or [FIRST_DAY - 1, *sorted(on for on, times in hours.dates.items() if times != ALL_DAY)]
            day = partial[max(1, bisect_right(partial, day)) - 1]
        else:
            while hours.on(day) == ALL_DAY:
                day -= 1
        start = min(start, (day + 2) * DAY)
    return start


def _offsets(zone: ZoneInfo, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the periods between changes of the clock: since, until, and the offset from UTC, all in s."""
    since = probe = start
    offset = _offset(zone, start)
    while probe < end:
        later = min(probe + DAY, end)
        if _offset(zone, later) != offset:
            change = probe + bisect_left(range(probe, later), True, key=lambda at: _offset(zone, at) != offset)
            yield since, change, offset
            since, later, offset = change, change, _offset(zone, change)
        probe = later
    yield since, end, offset


def _offset(zone: ZoneInfo, moment: int) -> int:
    offset = datetime.fromtimestamp(moment, zone).utcoffset() or timedelta()
    return offset.days * DAY + offset.seconds
