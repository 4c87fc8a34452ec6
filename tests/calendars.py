"""Random calendars, and a reference implementation of SearchAvailability that checks every minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

MINUTE, HOUR, DAY = 60, 3600, 86_400
Times = list[tuple[int, int]]

# Days near clock changes of a zone, in both directions, and a recent day.
ZONES: dict[str, tuple[date, ...]] = {
    "Europe/Berlin": (date(2026, 3, 29), date(2026, 10, 25), date(2026, 7, 1)),
    "America/Sao_Paulo": (date(2017, 10, 15), date(2018, 2, 18), date(2018, 11, 4), date(2026, 2, 15)),
    "Australia/Lord_Howe": (date(2026, 10, 4), date(2026, 4, 5), date(2026, 7, 1)),
    "Asia/Kathmandu": (date(2026, 3, 29), date(1986, 1, 1)),
}


@dataclass
class Hours:
    """Hours in minutes of the day: by weekday, Monday first, and by date."""

    week: dict[int, Times] = field(default_factory=dict)
    dates: dict[date, Times] = field(default_factory=dict)

    def opening_hours(self) -> list[dict[str, Any]]:
        """Return the fields of OpeningHours."""
        names = [*("MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY")]
        return [
            {"day_of_week": names[day], **fields(*times)} for day, all_times in self.week.items() for times in all_times
        ]

    def special_hours(self) -> list[dict[str, Any]]:
        """Return the fields of SpecialHours."""
        found: list[dict[str, Any]] = []
        for on, all_times in self.dates.items():
            named = {"date": {"year": on.year, "month": on.month, "day": on.day}}
            found += [{**named, **fields(*times)} for times in all_times] or [named]
        return found


def fields(opened: int, closed: int) -> dict[str, dict[str, int]]:
    """Return the times of an interval."""
    return {
        "open_time": {"hours": opened // 60, "minutes": opened % 60},
        "close_time": {"hours": closed // 60, "minutes": closed % 60},
    }


@dataclass
class Case:
    """A search: the calendars, the period, and the booked times."""

    zone: str
    salon: Hours
    resources: dict[str, Hours]
    busy: dict[str, Times]
    start: int
    end: int
    now: int
    duration: int
    step: int
    before: int
    after: int
    notice: int
    horizon: int | None


def offered(case: Case) -> list[tuple[int, str]]:
    """Return the slots that must be offered by the definition."""
    found = []
    for name, own in case.resources.items():
        is_open = opens(case.zone, case.salon, own)
        stretch: int | None = None
        for minute in range(since(is_open, case.start - 3 * DAY), case.end, MINUTE):
            if not is_open(minute):
                stretch = None
                continue
            stretch = minute if stretch is None else stretch
            if (minute - stretch) % case.step == 0 and fits(case, name, is_open, minute):
                found.append((minute, name))
    return sorted(found)


def since(is_open: Callable[[int], bool], moment: int) -> int:
    """Return the latest closed moment up to `moment`, or the first moment of all calendars."""
    while is_open(moment) and moment > -2 * DAY:
        moment -= MINUTE
    return moment


def opens(zone: str, salon: Hours, own: Hours) -> Callable[[int], bool]:
    """Return a function that tells whether the hours include a moment."""
    clock = ZoneInfo(zone)

    @cache
    def is_open(moment: int) -> bool:
        wall = datetime.fromtimestamp(moment, clock)
        today, minute = wall.date(), wall.hour * 60 + wall.minute

        def within(times: Times) -> bool:
            return any(opened <= minute < closed for opened, closed in times)

        if today < date(1969, 12, 31):
            return False
        if not within(salon.dates.get(today, salon.week.get(today.weekday(), []))):
            return False
        if today in own.dates:
            return within(own.dates[today])
        return not own.week or within(own.week.get(today.weekday(), []))

    return is_open


def fits(case: Case, name: str, is_open: Callable[[int], bool], start: int) -> bool:
    """Return whether a slot that starts on the grid may be offered."""
    end = start + case.duration
    return (
        case.start <= start
        and end <= case.end
        and start >= case.now + case.notice
        and (case.horizon is None or start <= case.now + case.horizon)
        and all(is_open(minute) for minute in range(start, end, MINUTE))
        and not any(
            begin < end + case.after and until > start - case.before for begin, until in case.busy.get(name, [])
        )
    )


MINUTES = st.one_of(
    st.sampled_from([0, 60, 120, 150, 180, 540, 720, 1080, 1440]), st.integers(0, 96).map(lambda n: n * 15)
)
DAYS = st.lists(st.tuples(MINUTES, MINUTES).filter(lambda pair: pair[0] < pair[1]), max_size=3) | st.sampled_from(
    [[(0, 1440)], [(0, 720), (720, 1440)], [(1380, 1440), (0, 120)]]
)


def hours(around: date) -> st.SearchStrategy[Hours]:
    """Return random hours, with special ones near a date."""
    near = st.integers(-3, 3).map(lambda days: around + timedelta(days=days))
    return st.builds(
        Hours,
        st.dictionaries(st.integers(0, 6), DAYS.filter(bool), max_size=7),
        st.dictionaries(near, DAYS, max_size=3),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return a random search of about a day, often around a change of the clock."""
    zone = draw(st.sampled_from(sorted(ZONES)))
    around = draw(st.sampled_from(ZONES[zone]))
    midnight = int(datetime(around.year, around.month, around.day, tzinfo=UTC).timestamp())
    start = midnight + draw(st.integers(-18 * 4, 6 * 4)) * 15 * MINUTE
    end = start + draw(st.integers(1, 40 * 4)) * 15 * MINUTE
    busy: dict[str, Times] = {}
    names = ["anna", "ben"][: draw(st.integers(1, 2))]
    for name in names:
        at = start - 4 * HOUR
        busy[name] = []
        for gap, length in draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), max_size=5)):
            busy[name].append((at + gap * 15 * MINUTE, at + (gap + length) * 15 * MINUTE))
            at = busy[name][-1][1]
    quarters = st.integers(1, 12).map(lambda count: count * 10 * MINUTE)
    short = st.sampled_from([0, 0, 5, 15, 60]).map(lambda minutes: minutes * MINUTE)
    week_of_all = {day: [(0, 1440)] for day in range(7)}
    salon = draw(hours(around) | st.builds(Hours, st.just(week_of_all), st.just({around - timedelta(days=5): []})))
    return Case(
        zone,
        salon,
        {name: draw(st.just(Hours()) | hours(around)) for name in names},
        busy,
        start,
        end,
        draw(st.sampled_from([start - 30 * DAY, start - HOUR, start + 3 * HOUR])),
        draw(quarters),
        draw(quarters),
        draw(short),
        draw(short),
        draw(st.sampled_from([0, HOUR, 2 * HOUR])),
        draw(st.sampled_from([None, None, 12 * HOUR, 31 * DAY])),
    )
