"""Hours of the wall clock, and when they are, in elapsed time: right across every change of the clock.

A stretch is half-open. On the wall it is counted in s of a day, or of all days since 1970-01-01; otherwise in s since
1970. Stretches are in order and apart: what overlaps or touches is one.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

Stretch: TypeAlias = tuple[int, int]

DAY = 86_400
ALL_DAY: Sequence[Stretch] = [(0, DAY)]
# No calendar has hours before: the earliest date at the earliest moment of a request.
FIRST_DAY = -1
_EPOCH = date(1970, 1, 1).toordinal()
_WEEKDAYS = ("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")


class Calendar(NamedTuple):
    """Hours of each weekday, Monday first, and of dates that have others, by their number since 1970-01-01."""

    week: Sequence[Sequence[Stretch]]
    dates: Mapping[int, Sequence[Stretch]]

    def on(self, day: int) -> Sequence[Stretch]:
        """Return the hours of a day."""
        if day < FIRST_DAY:
            return ()
        special = self.dates.get(day)
        return self.week[(day + 3) % 7] if special is None else special

    def wall(self, first: int, last: int) -> list[Stretch]:
        """Return the hours of the days from `first` to `last`."""
        return merged(
            (day * DAY + begin, day * DAY + end) for day in range(first, last + 1) for begin, end in self.on(day)
        )


def calendar(hours: Sequence[Any], special_hours: Sequence[Any]) -> Calendar:
    """Return the calendar of OpeningHours and SpecialHours, both as JSON."""
    week: dict[str, list[Stretch]] = {day: [] for day in _WEEKDAYS}
    for stretch in hours:
        week[stretch["day_of_week"]].append(_times(stretch))
    dates: dict[int, list[Stretch]] = {}
    for stretch in special_hours:
        on = stretch["date"]
        times = dates.setdefault(date(on["year"], on["month"], on["day"]).toordinal() - _EPOCH, [])
        if "open_time" in stretch:
            times.append(_times(stretch))
    return Calendar(
        [merged(sorted(times)) for times in week.values()],
        {day: merged(sorted(times)) for day, times in dates.items()},
    )


def narrowed(salon: Calendar, working_hours: Sequence[Any], special_hours: Sequence[Any]) -> Calendar:
    """Return when a salon is open and a resource works; one without hours of its own works whenever it is open."""
    if not working_hours and not special_hours:
        return salon
    own = calendar(working_hours, special_hours)
    if not working_hours:
        own = own._replace(week=[ALL_DAY] * 7)
    return Calendar(
        [_both(*pair) for pair in zip(salon.week, own.week, strict=True)],
        {day: _both(salon.on(day), own.on(day)) for day in salon.dates.keys() | own.dates.keys()},
    )


def stretches(hours: Calendar, zone: ZoneInfo, start: int, end: int) -> list[Stretch]:
    """Return when a calendar is open between `start` and `end`, each stretch from its very beginning."""
    found = [stretch for stretch in _open(hours, zone, start - DAY, end) if stretch[1] > start]
    if found and found[0][0] == start - DAY:
        found[0] = (_beginning(hours, zone, start - DAY), found[0][1])
    return found


def merged(times: Iterable[Stretch]) -> list[Stretch]:
    """Return stretches, given in the order of their beginnings, as one where they overlap or touch."""
    found: list[Stretch] = []
    for begin, end in times:
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def _times(stretch: Any) -> Stretch:
    opened, closed = stretch["open_time"], stretch["close_time"]
    return _seconds(opened), _seconds(closed)


def _seconds(time: Any) -> int:
    return int(time.get("hours", 0) * 3600 + time.get("minutes", 0) * 60)


def _both(some: Sequence[Stretch], others: Sequence[Stretch]) -> list[Stretch]:
    common: list[Stretch] = []
    one = other = 0
    while one < len(some) and other < len(others):
        begin, end = max(some[one][0], others[other][0]), min(some[one][1], others[other][1])
        if begin < end:
            common.append((begin, end))
        one, other = (one + 1, other) if some[one][1] == end else (one, other + 1)
    return common


def _open(hours: Calendar, zone: ZoneInfo, start: int, end: int) -> list[Stretch]:
    """Return when a calendar is open, from `start` to `end`."""
    return merged(
        (max(begin - offset, since), min(close - offset, until))
        for since, until, offset in _offsets(zone, start, end)
        for begin, close in hours.wall((since + offset) // DAY, (until + offset - 1) // DAY)
        if begin - offset < until and close - offset > since
    )


def _beginning(hours: Calendar, zone: ZoneInfo, start: int) -> int:
    """Return since when a calendar has been open without a break up to `start`.

    Days that are open all day are not walked through by the clock: it has been open since the last that is not.
    """
    day = start // DAY + 1
    if all(times == ALL_DAY for times in hours.week):
        day = max((on for on, times in hours.dates.items() if on <= day and times != ALL_DAY), default=FIRST_DAY - 1)
    while hours.on(day) == ALL_DAY:
        day -= 1
    start = min(start, (day + 2) * DAY)
    while (earlier := _open(hours, zone, start - 7 * DAY, start)) and earlier[-1][1] == start:
        if earlier[-1][0] > start - 7 * DAY:
            return earlier[-1][0]
        start -= 7 * DAY
    return start


def _offsets(zone: ZoneInfo, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the times between changes of the clock: since, until, and the offset from UTC, all in s."""
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
