"""Which times may be booked, as pure functions: SearchAvailability offers by them, and writes refuse by them.

Times are in whole s since 1970, unless they are datetimes.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from services.booking.opening_hours import Calendar, Interval, calendar, intersection, is_open

LONGEST_SECONDS = 86_400  # of a booking that keeps the rules, and of a slot
MOST_CALENDARS = 256  # that a process remembers, of each kind; the largest have 150 KB (measured)
_UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


class Rules(NamedTuple):
    """A salon's BookingRules, in s; None is no rule. Buffers are not here: a booking has its own."""

    min_notice: int = 0
    max_advance: int | None = None
    min_cancel_notice: int | None = None
    one_booking_at_a_time: bool = False


class HoursJson(NamedTuple):
    """The jsonb of weekly and of special hours, of a salon or a resource, as Postgres sends it."""

    weekly: bytes | None
    special: bytes | None


class Place(NamedTuple):
    """Where a booking is to be made: the hours of a salon, and of its resource if it has one, in a time zone.

    `time_off` are times that overlap the booking; `is_active` is about the resource.
    """

    zone: ZoneInfo
    salon: Calendar
    hours: Calendar
    time_off: Sequence[Interval] = ()
    is_active: bool = True


class Refusal(NamedTuple):
    """Why a time can't be booked: the reason of the error, its message, and its metadata."""

    reason: str
    message: str
    metadata: Mapping[str, str] = MappingProxyType({})


def earliest_start(now: datetime, rules: Rules) -> int:
    """Return the first start that keeps the notice."""
    return ceil_seconds(now) + rules.min_notice


def latest_start(now: datetime, rules: Rules) -> int | None:
    """Return the last start that keeps the maximum advance, None without one."""
    return None if rules.max_advance is None else floor_seconds(now) + rules.max_advance


def refusal(start: datetime, end: datetime, now: datetime | None, rules: Rules, place: Place) -> Refusal | None:
    """Return why a time can't be booked by the rules, None if it can. Other bookings are not considered.

    `now` is None if the start stays as it was: then it may lie in the past.
    """
    if now is not None and (refused := _start_refusal(start, now, rules)):
        return refused
    if not place.is_active:
        return Refusal("RESOURCE_NOT_ACTIVE", "the resource is not active: choose another one")
    first, until = floor_seconds(start), ceil_seconds(end)
    if until - first > LONGEST_SECONDS:
        return Refusal("OUTSIDE_HOURS", "a booking can't be longer than 24 hours: choose an earlier end")
    if not is_open(place.hours, place.zone, first, until):
        salon_is_open = place.hours is not place.salon and is_open(place.salon, place.zone, first, until)
        whose = "resource" if salon_is_open else "salon"
        return Refusal("OUTSIDE_HOURS", f"the time is outside of the {whose}'s hours: choose another one")
    for off_start, off_end in place.time_off:
        if first < off_end and off_start < until:
            message = "there is time off then: choose another time or resource"
            return Refusal("RESOURCE_OFF", message, _times(conflict_start_time=off_start, conflict_end_time=off_end))
    return None


def _start_refusal(start: datetime, now: datetime, rules: Rules) -> Refusal | None:
    if start < now:
        return Refusal("IN_THE_PAST", "the booking would start in the past: choose a later time")
    if start < now + timedelta(seconds=rules.min_notice):
        message = f"the salon needs a notice of {_duration(rules.min_notice)}: choose a later time"
        return Refusal("TOO_SOON", message, _times(earliest_start_time=earliest_start(now, rules)))
    if rules.max_advance is not None and start > now + timedelta(seconds=rules.max_advance):
        message = f"the salon takes bookings up to {_duration(rules.max_advance)} ahead: choose an earlier time"
        latest = floor_seconds(now) + rules.max_advance
        return Refusal("TOO_FAR_AHEAD", message, _times(latest_start_time=latest))
    return None


def cancel_refusal(start: datetime, now: datetime, rules: Rules) -> Refusal | None:
    """Return why a booking that starts then can't be cancelled by the rules, None if it can."""
    if rules.min_cancel_notice is None or start - now >= timedelta(seconds=rules.min_cancel_notice):
        return None
    notice = _duration(rules.min_cancel_notice)
    message = f"it can be cancelled until {notice} before its start: ask the salon"
    latest = floor_seconds(start) - rules.min_cancel_notice
    return Refusal("TOO_LATE_TO_CANCEL", message, _times(latest_cancel_time=latest))


@lru_cache(MOST_CALENDARS)
def salon_calendar(hours: HoursJson) -> Calendar:
    """Return the hours of a salon, or those of a resource without regard to its salon's."""
    return calendar(from_jsonb(hours.weekly) or [], from_jsonb(hours.special) or [])


@lru_cache(MOST_CALENDARS)
def resource_calendar(salon: HoursJson, resource: HoursJson) -> Calendar:
    """Return the hours of a resource within those of its salon; the salon's calendar if it has none itself.

    With the most hours that a salon and a resource may have this takes 3 ms (measured): other work should run between
    two of them.
    """
    of_salon = salon_calendar(salon)
    return intersection(of_salon, from_jsonb(resource.weekly) or [], from_jsonb(resource.special) or [])


@lru_cache(MOST_CALENDARS)
def rules_of(booking_rules: bytes | None) -> Rules:
    """Return the rules in the jsonb of a salon's booking_rules."""
    found: Mapping[str, Any] = from_jsonb(booking_rules) or {}

    def seconds(name: str) -> int | None:
        return int(found[name].get("seconds", 0)) if name in found else None

    return Rules(
        seconds("min_notice") or 0,
        seconds("max_advance"),
        seconds("min_cancel_notice"),
        bool(found.get("one_booking_at_a_time_per_customer")),
    )


def from_jsonb(value: bytes | None) -> Any:
    """Return the value of a jsonb column in Postgres's binary format, whose first byte is a version."""
    return None if value is None else json.loads(value[1:])


def ceil_seconds(moment: datetime) -> int:
    """Return a moment in s since 1970, rounded up."""
    return -((_EPOCH - moment) // _SECOND)


def floor_seconds(moment: datetime) -> int:
    """Return a moment in s since 1970, rounded down."""
    return (moment - _EPOCH) // _SECOND


def _times(**seconds: int) -> dict[str, str]:
    """Return times in s since 1970 as an error's metadata has them."""
    return {name: f"{_EPOCH + timedelta(seconds=at):%Y-%m-%dT%H:%M:%SZ}" for name, at in seconds.items()}


def _duration(seconds: int) -> str:
    """Return a duration in the largest unit that has a whole number of it."""
    size, unit = next((size, unit) for size, unit in _UNITS if seconds % size == 0)
    count = seconds // size
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
