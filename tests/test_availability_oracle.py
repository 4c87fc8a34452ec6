"""SearchAvailability offers what its definition says, checked minute by minute, and CreateBooking takes exactly that.

ORACLE_EXAMPLES makes the tests longer.
"""

import json
import os
import struct
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, date, datetime
from itertools import count, islice
from typing import Any
from zoneinfo import ZoneInfo

import grpc
from hypothesis import HealthCheck, Phase, given, settings

from parlor.booking.v1 import booking_pb2 as pb
from services.booking import availability, rules
from services.booking import reasons as service_reasons
from services.booking.availability_queries import Availability, Bookable
from services.booking.rules import HoursJson, Place
from tests.calendars import MINUTE, Case, Hours, cases, is_asked_for, is_free, offered, on_grid, opens, starts
from tests.searches import clock, found, request, stack
from tests.stack import SALON, Fields, Stack, booking_request, rows, salon
from tests.test_resources import resource

__all__ = ["clock", "stack"]


RANDOM = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
ORACLE_EXAMPLES = int(os.environ.get("ORACLE_EXAMPLES", "300"))  # 20,000 in a long run
_numbers = count()


def jsonb(value: Any) -> bytes:
    """Return a value as Postgres sends it."""
    return b"\1" + json.dumps(value).encode()


def merged(times: Iterable[tuple[int, int]]) -> bytes:
    """Return times, merged and sorted, as the statement of a search returns them."""
    found: list[list[int]] = []
    for begin, until in sorted(times):
        if found and begin <= found[-1][1]:
            found[-1][1] = max(found[-1][1], until)
        else:
            found.append([begin, until])
    return b"".join(struct.pack(">qq", *times) for times in found)


def hours_of(hours: Hours) -> HoursJson:
    """Return hours as the database has them."""
    return HoursJson(jsonb(hours.opening_hours()), jsonb(hours.special_hours()))


def booking_rules(case: Case) -> Fields:
    """Return the BookingRules of a case's salon, without buffers."""
    found: Fields = {"min_notice": {"seconds": case.min_notice}} if case.min_notice else {}
    return found | ({} if case.max_advance is None else {"max_advance": {"seconds": case.max_advance}})


def availability_of(case: Case) -> Availability:
    """Return what the statement of a search reads."""
    resources = {}
    for name in case.resources:
        busy = [(booked.start - booked.before, booked.end + booked.after) for booked in case.busy[name]]
        may = name in case.doing - case.inactive
        resources[name] = Bookable(
            may, hours_of(case.resources[name]), merged(busy), merged(case.time_off.get(name, []))
        )
    return Availability(
        zone=ZoneInfo(case.zone),
        hours=hours_of(case.salon),
        rules=rules.rules_of(jsonb(booking_rules(case))),
        duration=case.duration,
        buffers=(max(case.before, case.own_before), max(case.after, case.own_after)),
        found_excluded=True,
        time_off=merged(case.time_off.get("", [])),
        resources=resources,
    )


def search_of(case: Case, salon_id: str = SALON, **fields: Any) -> pb.SearchAvailabilityRequest:
    """Return the request of a case's search."""
    seconds: Fields = {"step": case.step, "buffer_before": case.before, "buffer_after": case.after}
    bounds: Fields = {"minimum_notice": case.notice, "horizon": case.horizon}
    return request(case.start, case.end, case.duration // MINUTE, salon_id, **seconds, **bounds, **fields)


def computed(case: Case, most: int = 100_000) -> list[tuple[int, str]]:
    """Return the slots that the service's functions find for a case."""
    read = availability_of(case)
    _, query = availability.slot_queries(search_of(case), datetime.fromtimestamp(case.now, UTC), read)
    free = finish(availability.free_by_start(read, query, most))
    return [(start, name) for start in sorted(free) for name in free[start]]


def finish(steps: Generator[None, None, Any]) -> Any:
    """Return what a computation in steps returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def accepted(case: Case, name: str, start: int) -> bool:
    """Return whether the service's functions accept a booking."""
    first, last, now = [datetime.fromtimestamp(at, UTC) for at in (start, start + case.duration, case.now)]
    time_off = [*case.time_off.get("", []), *case.time_off.get(name, [])]
    of_salon, own = hours_of(case.salon), hours_of(case.resources[name])
    hours = rules.salon_calendar(of_salon), rules.resource_calendar(of_salon, own)
    place = Place(ZoneInfo(case.zone), *hours, time_off, name not in case.inactive)
    refused = rules.refusal(first, last, now, rules.rules_of(jsonb(booking_rules(case))), place)
    return refused is None and name in case.doing and is_free(case, name, start, case.own_before, case.own_after)


@settings(RANDOM, max_examples=ORACLE_EXAMPLES)
@given(case=cases())
def test_offered_slots_are_those_of_the_definition_checked_minute_by_minute(case: Case) -> None:
    slots = offered(case)
    assert computed(case) == slots
    some = computed(case, len(slots) // 2)
    assert len(slots) // 2 <= len(some) <= len(slots) // 2 + 2
    assert some == slots[: len(some)]
    wanted = [(start, name) for start, name, _ in on_grid(case) if is_asked_for(case, name, start)]
    assert sorted((start, name) for start, name in wanted if accepted(case, name, start)) == slots


def reasons_of(case: Case) -> list[tuple[date, str]]:
    """Return why a search finds nothing, by the definition of each reason."""
    clock = ZoneInfo(case.zone)
    first = case.now + max(case.notice, case.min_notice)
    last = min(case.now + limit for limit in (case.horizon, case.max_advance, case.end) if limit is not None)

    def local(moment: int) -> date:
        return datetime.fromtimestamp(moment, clock).date()

    def works(name: str) -> Iterator[int]:
        """Yield the starts of slots within the hours of a resource, or of the salon, and outside of time off."""
        is_open = opens(case.zone, case.salon, case.resources.get(name, Hours()))
        off = [times for of in {"", name} for times in case.time_off.get(of, [])]
        for start in starts(case, is_open):
            end = start + case.duration
            if (
                case.start <= start
                and end <= case.end
                and all(is_open(moment) for moment in range(start, end, case.tick))
                and not any(begin < end and until > start for begin, until in off)
            ):
                yield start

    open_days = {local(start) for start in works("")}
    able = case.doing - case.inactive
    all_starts = [start for name in able for start in works(name)]
    found = []
    for day in sorted({local(moment) for moment in range(case.start, case.end, case.tick)}):
        on_day = [start for start in all_starts if local(start) == day]
        if day not in open_days:
            found.append((day, "CLOSED"))
        elif not able:
            found.append((day, "NO_RESOURCE"))
        elif not on_day:
            found.append((day, "RESOURCE_OFF"))
        elif any(first <= start <= last for start in on_day):
            found.append((day, "FULLY_BOOKED"))
        elif any(start < first for start in on_day):
            found.append((day, "TOO_SOON"))
        else:
            found.append((day, "TOO_LATE"))
    return found


@settings(RANDOM, max_examples=ORACLE_EXAMPLES // 2)
@given(case=cases())
def test_the_reasons_of_an_empty_search_are_those_of_their_definition(case: Case) -> None:
    if offered(case):
        return
    read = availability_of(case)
    queries = availability.slot_queries(search_of(case), datetime.fromtimestamp(case.now, UTC), read)
    reply = pb.SearchAvailabilityResponse.FromString(finish(service_reasons.response(read, *queries)))
    computed_reasons = [
        (date(each.date.year, each.date.month, each.date.day), pb.UnavailableReason.Name(each.reason))
        for each in reply.reasons
    ]
    assert computed_reasons == [(day, f"UNAVAILABLE_REASON_{name}") for day, name in reasons_of(case)]


async def store(stack: Stack, case: Case, *, service: bool) -> str:
    """Write a case's salon, resources and bookings; return the salon's id."""
    salon_id = f"salon-{next(_numbers)}"
    hours: Fields = {"opening_hours": case.salon.opening_hours(), "special_hours": case.salon.special_hours()}
    buffers: Fields = {"buffer_before": {"seconds": case.own_before}, "buffer_after": {"seconds": case.own_after}}
    all_rules = booking_rules(case) | ({} if service else buffers)
    await salon(stack, salon_id, resources=(), time_zone=case.zone, booking_rules=all_rules, **hours)
    for name, own in case.resources.items():
        fields: Fields = {"working_hours": own.opening_hours(), "special_hours": own.special_hours()}
        await resource(stack, name, salon_id=salon_id, active=name not in case.inactive, **fields)
        for booked in case.busy[name]:
            query = f"""
                INSERT INTO bookings (salon_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status,
                    buffer_before, buffer_after)
                VALUES ('{salon_id}', 'B{next(_numbers)}', '', '{name}', to_timestamp({booked.start}),
                    to_timestamp({booked.end}), 'CONFIRMED', {booked.before}, {booked.after}) RETURNING 1"""
            rows(stack.database_url, query)
    for of, all_times in case.time_off.items():
        for begin, until in all_times:
            times: Fields = {"start_time": {"seconds": begin}, "end_time": {"seconds": until}}
            await stack.booking.CreateTimeOff(pb.CreateTimeOffRequest(salon_id=salon_id, resource_id=of, **times))
    if service:
        named: Fields = {"salon_id": salon_id, "service_id": "cut", "name": "Cut", "resource_ids": sorted(case.doing)}
        duration: Fields = {"duration": {"seconds": case.duration}}
        await stack.booking.UpsertService(pb.UpsertServiceRequest(**named, **duration, **buffers))
    return salon_id


async def is_booked(stack: Stack, salon_id: str, case: Case, start: int, name: str, **fields: Any) -> bool:
    """Return whether a booking can be made; cancel it."""
    times: Fields = {"start_time": {"seconds": start}, "end_time": {"seconds": start + case.duration}}
    wanted = booking_request(salon_id=salon_id, resource_id=name, ignore_rules=False, **times, **fields)
    try:
        code = (await stack.booking.CreateBooking(wanted)).booking_code
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        return False
    cancel: Fields = {"salon_id": salon_id, "booking_code": code, "status": "BOOKING_STATUS_CANCELLED"}
    await stack.booking.UpdateBookingStatus(pb.UpdateBookingStatusRequest(**cancel))
    return True


@settings(RANDOM, max_examples=40, phases=[Phase.generate])
@given(case=cases())
async def test_exactly_the_offered_slots_can_be_booked(stack: Stack, clock: list[int], case: Case) -> None:
    clock[0] = 0
    service = case.doing != set(case.resources) or case.start % 2 == 0
    salon_id = await store(stack, case, service=service)
    clock[0] = case.now
    named: Fields = {"service_id": "cut"} if service else {}
    slots = await found(stack, search_of(case, salon_id, resource_ids=list(case.resources), **named))
    assert slots == offered(case)
    for start, name in islice(slots, 0, None, 1 + len(slots) // 12):
        assert await is_booked(stack, salon_id, case, start, name, **named)
    others = [(start, name) for start, name, _ in on_grid(case) if is_asked_for(case, name, start)]
    others = sorted({*others} - {*slots})
    for start, name in islice(others, 0, None, 1 + len(others) // 12):
        assert not await is_booked(stack, salon_id, case, start, name, **named)
