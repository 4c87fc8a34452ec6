"""Why there is no free slot: the reasons of each day."""

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from google.type.date_pb2 import Date

from parlor.booking.v1.booking_pb2 import SearchAvailabilityResponse, UnavailableDay, UnavailableReason
from services.booking import rules
from services.booking.availability_queries import Availability
from services.booking.slot_grid import SlotQuery, Times, starts_on_grid, without


def response(found: Availability, asked: SlotQuery, query: SlotQuery) -> Generator[None, None, bytes]:
    """Return the SearchAvailabilityResponse of a search that found no slot. Yields where other work may run.

    `asked` are the slots of the request's period, `query` those of them that are neither too soon nor too late.
    """
    days = Days(found.zone, asked.first, max(asked.first, asked.last + asked.duration - 1))
    salon_off = Times.of(found.time_off)
    starts: Sequence[range] = starts_on_grid(rules.salon_calendar(found.hours), found.zone, asked)
    starts = yield from without(starts, salon_off, asked.without_buffers())
    is_open, works, in_time, soon = days.of(starts), set[int](), set[int](), set[int]()
    active = [resource for resource in found.resources.values() if resource.is_active]
    for resource in active:
        starts = starts_on_grid(rules.resource_calendar(found.hours, resource.hours), found.zone, asked)
        for time_off in (salon_off, Times.of(resource.time_off)):
            starts = yield from without(starts, time_off, asked.without_buffers())
        works |= days.of(starts)
        soon |= days.of([early for each in starts if (early := each[: bisect_left(each, query.first)])])
        within = [each[bisect_left(each, query.first) : bisect_right(each, query.last)] for each in starts]
        in_time |= days.of([each for each in within if each])
        yield
    reply = SearchAvailabilityResponse()
    for number, day in enumerate(days.dates):
        if number not in is_open:
            reason = UnavailableReason.UNAVAILABLE_REASON_CLOSED
        elif not active:
            reason = UnavailableReason.UNAVAILABLE_REASON_NO_RESOURCE
        elif number not in works:
            reason = UnavailableReason.UNAVAILABLE_REASON_RESOURCE_OFF
        elif number in in_time:
            reason = UnavailableReason.UNAVAILABLE_REASON_FULLY_BOOKED
        elif number in soon:
            reason = UnavailableReason.UNAVAILABLE_REASON_TOO_SOON
        else:
            reason = UnavailableReason.UNAVAILABLE_REASON_TOO_LATE
        on = Date(year=day.year, month=day.month, day=day.day)
        reply.reasons.append(UnavailableDay(date=on, reason=reason))
    return reply.SerializeToString()


class Days:
    """The days of a period in a time zone, numbered from 0."""

    def __init__(self, zone: ZoneInfo, first: int, last: int) -> None:
        """`first` and `last` are the first and the last second of the period."""
        day, end = _date(first, zone), _date(last, zone)
        self.dates: list[date] = []
        self._midnights: list[int] = []  # the ends of the days
        while day <= end:
            begin, until = _midnight(day, zone), _midnight(day + timedelta(days=1), zone)
            if begin < until:  # not so where a country crossed the date line
                self.dates.append(day)
                self._midnights.append(until)
            day += timedelta(days=1)
        self._midnights.pop()

    def of(self, starts: Iterable[range]) -> set[int]:
        """Return the numbers of the days that have starts."""
        found: set[int] = set()
        for each in starts:
            position = 0
            while position < len(each):
                number = bisect_right(self._midnights, each[position])
                found.add(number)
                position = bisect_left(each, self._midnights[number]) if number < len(self._midnights) else len(each)
        return found


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())


def _date(at: int, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(at, UTC).astimezone(zone).date()
