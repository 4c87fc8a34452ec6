"""No salon, zone or calendar makes a request hold the event loop for long. LOOP_EXAMPLES makes the test longer."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import json
import os
import time
from collections.abc import Generator, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import grpc
import psycopg
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from parlor.booking.v1 import booking_pb2 as pb
from services.booking import availability, reasons, rules
from services.booking.availability_queries import Availability, Bookable
from services.booking.rules import HoursJson, Place, Rules
from services.booking.slot_grid import SlotQuery
from tests.calendars import ALL_ZONES, DAY, MINUTE, Hours
from tests.stack import Fields
from tests.test_request_sizes import OUTCOMES, TRIES, Served, method_of, served

__all__ = ["served"]
MOST_SECONDS = 0.05
LOOP_EXAMPLES = int(os.environ.get("LOOP_EXAMPLES", "6"))  # 100 in a long run
MOST_RESOURCES = 200
DAYS = 62
LAST = 253_370_764_799 - DAYS * DAY
LIMITS = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
WEEKS = {
    "never": Hours(),
    "always": Hours({day: [(0, 1440)] for day in range(7)}),
    "always, in pieces": Hours({day: [(144 * n, 144 * (n + 1)) for n in range(10)] for day in range(7)}),
    "with breaks": Hours({day: [(144 * n, 144 * n + 143) for n in range(10)] for day in range(7)}),
    "but Sundays": Hours({day: [(0, 1440)] for day in range(6)}),
}
SPECIAL = ("none", "one day", "all day", "closed", "spread", "changes of the clock")
_numbers = count()


class Heavy(NamedTuple):
    """A salon and its resources with the most hours that there may be, and the start of a search."""

    zone: str
    salon: tuple[str, str]
    resources: tuple[str, str]
    start: int


def hours() -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.sampled_from(sorted(WEEKS)), st.sampled_from(SPECIAL))


def heavy() -> st.SearchStrategy[Heavy]:
    moments = st.sampled_from([0, 3 * DAY, 1_800_000_000, 168_099_166_354, LAST]) | st.integers(0, LAST)
    return st.builds(Heavy, st.sampled_from(ALL_ZONES), hours(), hours(), moments)


def special_hours(kind: str, start: int) -> list[dict[str, Any]]:
    """Return 400 special hours near a moment."""
    around = date(1970, 1, 1).toordinal() + start // DAY
    days: dict[date, list[tuple[int, int]]] = {}
    if kind == "one day":
        days[date.fromordinal(around)] = [(3 * n, 3 * n + 2) for n in range(400)]
    for n in range(400 if kind not in ("none", "one day") else 0):
        day = around + (n - 300 if kind in ("all day", "closed") else 364 * (n - 399))
        if date(1970, 1, 1).toordinal() <= day <= date(9998, 12, 31).toordinal():
            on = date.fromordinal(day)
            if kind == "changes of the clock":  # in Europe: the hour that is skipped is closed
                on = date(on.year, 3, 31)
                on -= timedelta(days=(on.weekday() + 1) % 7)
            times = {"closed": [], "changes of the clock": [(0, 120), (180, 1440)]}
            days[on] = times.get(kind, [(0, 1440)])
    return Hours({}, days).special_hours()


def json_hours(kind: tuple[str, str], start: int) -> tuple[str, str]:
    """Return weekly and special hours as JSON."""
    return json.dumps(WEEKS[kind[0]].opening_hours()), json.dumps(special_hours(kind[1], start))


def forget() -> None:
    """Let the process remember no calendar and no zone."""
    rules.salon_calendar.cache_clear()
    rules.resource_calendar.cache_clear()
    ZoneInfo.clear_cache()


def store(url: str, case: Heavy) -> str:
    """Write the salon, 200 resources and a service; return the salon's id."""
    salon_id = f"heavy-{next(_numbers)}"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO salons (salon_id, phone_number_id, name, time_zone, opening_hours, special_hours)"
            " VALUES (%s, %s, 'Heavy', %s, %s, %s)",
            [salon_id, salon_id, case.zone, *json_hours(case.salon, case.start)],
        )
        conn.execute(
            "INSERT INTO resources (salon_id, resource_id, name, working_hours, special_hours)"
            " SELECT %s, 'r' || n, 'r', %s, %s FROM generate_series(1, %s) AS n",
            [salon_id, *json_hours(case.resources, case.start), MOST_RESOURCES],
        )
        conn.execute(
            "INSERT INTO services (salon_id, service_id, name, duration) VALUES (%s, 'cut', 'Cut', 60)", [salon_id]
        )
    return salon_id


def requests(case: Heavy, salon_id: str) -> Iterator[tuple[str, Message]]:
    """Yield the requests that read calendars, with the name of their method."""
    period: Fields = {"start_time": {"seconds": case.start}, "end_time": {"seconds": case.start + DAYS * DAY}}
    short: Fields = {"duration": {"seconds": MINUTE}, "step": {"seconds": MINUTE}}
    for more in ({}, {"horizon": {"seconds": 0}}, {"duration": {"seconds": DAY}}):
        fields: Fields = {"salon_id": salon_id, **period, **short, **more}
        yield "SearchAvailability", pb.SearchAvailabilityRequest(**fields)
    start: Fields = {"start_time": {"seconds": max(case.start, 4_000_000_000)}}
    some = [f"r{number}" for number in range(1, 51)]
    choices: list[Fields] = [{}, {"any_of_resource_ids": some}, {"resource_id": "r7"}]
    for more in choices:
        fields = {"salon_id": salon_id, "customer_name": "Zoë", "service_id": "cut", **start, **more}
        yield "CreateBooking", pb.CreateBookingRequest(**fields)
    yield "ListResources", pb.ListResourcesRequest(salon_id=salon_id, page_size=MOST_RESOURCES)
    yield "GetSalon", pb.GetSalonRequest(salon_id=salon_id)


def check_holds(served: Served, name: str, request: Message, what: Any) -> None:
    """Check how long a request holds the loop: the least of a few tries, the machine may be busy."""
    held = []
    for _ in range(TRIES):
        forget()
        error, longest, _memory = served.measure(method_of(name), request.SerializeToString(), False)
        code = grpc.StatusCode.OK if error is None else error.code()
        assert code in OUTCOMES, (name, code, what)
        held.append(longest)
        if longest < MOST_SECONDS:
            return
    raise AssertionError(f"{name} held the loop for {min(held) * 1000:.0f} ms: {what}")


@settings(LIMITS, max_examples=LOOP_EXAMPLES)
@given(case=heavy())
@example(case=Heavy("Europe/Berlin", ("with breaks", "one day"), ("with breaks", "spread"), 1_800_000_000))
@example(case=Heavy("Etc/GMT+10", ("always, in pieces", "one day"), ("always", "all day"), 168_099_166_354))
@example(case=Heavy("Europe/Berlin", ("always", "changes of the clock"), ("always", "all day"), LAST))
def test_no_salon_zone_or_calendar_holds_the_event_loop(served: Served, case: Heavy) -> None:
    salon_id = store(served.stack.database_url, case)
    for name, request in requests(case, salon_id):
        check_holds(served, name, request, case)


def test_many_bookings_hold_nobody_up(served: Served) -> None:
    case = Heavy("UTC", ("always", "none"), ("always", "none"), 1_800_000_000)
    salon_id = store(served.stack.database_url, case)
    with psycopg.connect(served.stack.database_url, autocommit=True) as conn:
        conn.execute(
            """
            INSERT INTO bookings (salon_id, booking_code, customer_phone, resource_id, start_ts, end_ts, status)
            SELECT %(salon)s, 'R' || r || 'N' || n, '', 'r' || r, to_timestamp(%(start)s + n * 43200),
                to_timestamp(%(start)s + n * 43200 + 3600), 'CONFIRMED'
            FROM generate_series(1, %(resources)s) AS r, generate_series(0, %(days)s * 2 - 1) AS n""",
            {"salon": salon_id, "start": case.start, "resources": MOST_RESOURCES, "days": DAYS},
        )
    for name, request in requests(case, salon_id):
        check_holds(served, name, request, case)


def longest_step(steps: Generator[None, None, Any]) -> float:
    """Return the CPU time of the longest step of a computation, in s."""
    longest = 0.0
    while True:
        began = time.thread_time()
        try:
            next(steps)
        except StopIteration:
            return max(longest, time.thread_time() - began)
        longest = max(longest, time.thread_time() - began)


def computations(case: Heavy) -> Iterator[Generator[None, None, Any]]:
    """Yield what is computed for a search with 1-minute steps, and for a booking of a day."""
    salon, resource = [
        HoursJson(*(b"\1" + text.encode() for text in json_hours(kind, case.start)))
        for kind in (case.salon, case.resources)
    ]
    every_other_minute = b"".join((case.start + at).to_bytes(8, "big") for at in range(0, DAYS * DAY, MINUTE))
    found = Availability(
        zone=ZoneInfo(case.zone),
        hours=salon,
        rules=Rules(),
        duration=MINUTE,
        buffers=(0, 0),
        found_excluded=True,
        time_off=None,
        resources={
            "r1": Bookable(True, resource, every_other_minute, None),
            "r2": Bookable(True, resource, None, None),
        },
    )
    query = SlotQuery(case.start, case.start + DAYS * DAY - MINUTE, MINUTE, MINUTE, 0, 0)
    yield availability.free_by_start(found, query, 10_200)
    yield reasons.response(found, query, query)
    yield reasons.response(found, query, query._replace(first=query.last))

    def refusal() -> Generator[None, None, Any]:
        start, hours = datetime.fromtimestamp(case.start, UTC), rules.resource_calendar(salon, resource)
        place = Place(found.zone, rules.salon_calendar(salon), hours)
        yield from ()
        return rules.refusal(start, start + timedelta(days=1), None, Rules(), place)

    yield refusal()


@settings(LIMITS, max_examples=25 * LOOP_EXAMPLES)
@given(case=heavy())
@example(case=Heavy("Etc/GMT+10", ("always, in pieces", "one day"), ("always", "all day"), 168_099_166_354))
@example(case=Heavy("Europe/Berlin", ("always", "changes of the clock"), ("always", "none"), LAST))
@example(case=Heavy("Europe/Berlin", ("always", "none"), ("always", "changes of the clock"), LAST))
@example(case=Heavy("Europe/London", ("with breaks", "one day"), ("but Sundays", "spread"), 1_800_000_000))
def test_no_step_of_a_computation_is_long_in_any_zone(case: Heavy) -> None:
    for number, _ in enumerate(computations(case)):
        longest: list[float] = []
        while len(longest) < TRIES and (not longest or min(longest) > MOST_SECONDS):
            forget()
            longest.append(longest_step(list(computations(case))[number]))
        assert min(longest) < MOST_SECONDS, (number, longest)
