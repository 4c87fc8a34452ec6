"""Random calendars, and a reference implementation of SearchAvailability that checks every minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from hypothesis import strategies as st

MINUTE, HOUR, DAY = 60, 3600, 86_400
Times = list[tuple[int, int]]
ALL_ZONES = sorted(available_timezones())

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
class Booked:
    """A booking that blocks its time with its buffers; all fields are in s."""

    start: int
    end: int
    before: int = 0
    after: int = 0


@dataclass
class Case:
    """A search: the calendars, the period, the booked times, the salon's rules and its service.

    `busy` and `time_off` are by resource; the time off of the salon is that of "". `before`, `after`, `notice` and
    `horizon` are what the search asks for, `own_before` and `own_after` the buffers of a new booking. All are in s.
    """

    zone: str
    salon: Hours
    resources: dict[str, Hours]
    inactive: set[str]
    doing: set[str]  # the resources that do the service
    busy: dict[str, list[Booked]]
    time_off: dict[str, Times]
    start: int
    end: int
    now: int
    duration: int
    step: int
    before: int
    after: int
    notice: int
    horizon: int | None
    own_before: int
    own_after: int
    min_notice: int
    max_advance: int | None

    @property
    def tick(self) -> int:
        """The step in which times are checked, in s. Liberia's clock was 44 min 30 s behind UTC until 1972."""
        return MINUTE // 2 if self.zone == "Africa/Monrovia" else MINUTE


def offered(case: Case) -> list[tuple[int, str]]:
    """Return the slots that must be offered by the definition."""
    return sorted((start, name) for start, name, is_open in on_grid(case) if fits(case, name, is_open, start))


def on_grid(case: Case) -> Iterator[tuple[int, str, Callable[[int], bool]]]:
    """Yield the starts of the step grid, each with its resource, and a function that tells when that is open."""
    for name, own in case.resources.items():
        is_open = opens(case.zone, case.salon, own)
        for start in starts(case, is_open):
            yield start, name, is_open


def starts(case: Case, is_open: Callable[[int], bool]) -> Iterator[int]:
    """Yield the starts of the step grid in some hours."""
    stretch: int | None = None
    for moment in range(since(is_open, case.start - 3 * DAY, case.tick), case.end, case.tick):
        if not is_open(moment):
            stretch = None
            continue
        stretch = moment if stretch is None else stretch
        if (moment - stretch) % case.step == 0:
            yield moment


def since(is_open: Callable[[int], bool], moment: int, tick: int) -> int:
    """Return the latest closed moment up to `moment`, or the first moment of all calendars."""
    while is_open(moment) and moment > -2 * DAY:
        moment -= tick
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
        name in case.doing - case.inactive
        and is_asked_for(case, name, start)
        and start >= case.now + case.min_notice
        and (case.max_advance is None or start <= case.now + case.max_advance)
        and all(is_open(moment) for moment in range(start, end, case.tick))
        and not any(begin < end and until > start for of in ("", name) for begin, until in case.time_off.get(of, []))
        and is_free(case, name, start, case.own_before, case.own_after)
    )


def is_asked_for(case: Case, name: str, start: int) -> bool:
    """Return whether a slot lies in the period of the search, and keeps its notice, its horizon and its buffers."""
    return (
        case.start <= start
        and start + case.duration <= case.end
        and start >= case.now + case.notice
        and (case.horizon is None or start <= case.now + case.horizon)
        and is_free(case, name, start, case.before, case.after)
    )


def is_free(case: Case, name: str, start: int, before: int, after: int) -> bool:
    """Return whether a slot with its buffers keeps clear of the bookings of a resource with theirs."""
    first, last = start - before, start + case.duration + after
    return not any(
        booked.start - booked.before < last and booked.end + booked.after > first for booked in case.busy.get(name, [])
    )


@cache
def changes_of_the_clock(zone: str) -> Sequence[date]:
    """Return the days from 1970 to 2037 on which a zone changes its clock, and one in 2026."""
    clock, found = ZoneInfo(zone), [date(2026, 7, 1)]
    moment = datetime(1970, 1, 10, 12, tzinfo=UTC)
    while moment.year < 2038:
        later = moment + timedelta(days=1)
        if moment.astimezone(clock).utcoffset() != later.astimezone(clock).utcoffset():
            found.append(later.date())
        moment = later
    return found


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
def places_in_time(draw: st.DrawFn) -> tuple[str, date]:
    """Return a time zone and a day, often one on which the zone changes its clock."""
    if draw(st.booleans()):
        zone = draw(st.sampled_from(sorted(ZONES)))
        return zone, draw(st.sampled_from(ZONES[zone]))
    zone = draw(st.sampled_from(ALL_ZONES))
    return zone, draw(st.sampled_from(changes_of_the_clock(zone)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Return a random search of about a day, often around a change of the clock."""
    zone, around = draw(places_in_time())
    midnight = int(datetime(around.year, around.month, around.day, tzinfo=UTC).timestamp())
    start = midnight + draw(st.integers(-18 * 4, 6 * 4)) * 15 * MINUTE
    end = start + draw(st.integers(1, 40 * 4)) * 15 * MINUTE
    names = ["anna", "ben"][: draw(st.integers(1, 2))]
    minutes = st.sampled_from([0, 0, 0, 5, 15, 60]).map(lambda count: count * MINUTE)
    odd = st.sampled_from([0, 0, 0, 1, 59])
    busy: dict[str, list[Booked]] = {}
    for name in names:
        at, busy[name] = start - 4 * HOUR, []
        for gap, length in draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), max_size=5)):
            before, after, more = draw(minutes), draw(minutes), draw(odd)
            begin = at + gap * 15 * MINUTE + before + more
            busy[name].append(Booked(begin, begin + length * 15 * MINUTE, before, after))
            at = busy[name][-1].end + after
    off = st.tuples(st.integers(-16, 160), st.integers(1, 48), odd)
    time_off = {
        of: [
            (start + at * 15 * MINUTE + more, start + (at + length) * 15 * MINUTE)
            for at, length, more in draw(st.lists(off, max_size=2))
        ]
        for of in ("", *names)
        if draw(st.booleans())
    }
    lengths = st.one_of(st.integers(1, 12).map(lambda count: count * 10), st.sampled_from([1, 7, 45, 1440]))
    duration, step = draw(lengths) * MINUTE, draw(lengths) * MINUTE
    week_of_all = {day: [(0, 1440)] for day in range(7)}
    salon = draw(hours(around) | st.builds(Hours, st.just(week_of_all), st.just({})))
    # A calendar that never closes would be checked from 1969 on.
    salon.dates.setdefault(around - timedelta(days=5), [])
    limits = st.sampled_from([None, None, None, 12 * HOUR, 31 * DAY])
    some = st.lists(st.sampled_from(names), min_size=1, max_size=2).map(set)
    return Case(
        zone=zone,
        salon=salon,
        resources={name: draw(st.just(Hours()) | hours(around)) for name in names},
        inactive=draw(st.just(set()) | some),
        doing=draw(st.just(set(names)) | some),
        busy=busy,
        time_off=time_off,
        start=start,
        end=end,
        now=draw(st.sampled_from([start - 30 * DAY, start - HOUR, start - HOUR + 1, start + 3 * HOUR])),
        duration=duration,
        step=step,
        before=draw(minutes),
        after=draw(minutes),
        notice=draw(st.sampled_from([0, 0, HOUR, 2 * HOUR])),
        horizon=draw(limits),
        own_before=draw(minutes),
        own_after=draw(minutes),
        min_notice=draw(st.sampled_from([0, 0, HOUR, 2 * HOUR + 1])),
        max_advance=draw(limits),
    )
