"""The statement that reads what decides whether a time can be booked: rules, hours, time off, other bookings."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from libs.db import Statement
from services.booking import rules
from services.booking.opening_hours import Interval
from services.booking.rules import HoursJson, Place, Rules


def buffer_of(side: str) -> str:
    """Return the SQL of a new booking's buffer in s, `before` or `after`: the service's, else that of the rules.

    It needs the salon as `s` and its service, if any, as `v`.
    """
    return f"coalesce(v.buffer_{side}, (s.booking_rules->'buffer_{side}'->>'seconds')::int, 0)"


class Candidate(NamedTuple):
    """A resource that may be booked: whether the time is free, and how long it is booked on that day, in s."""

    resource_id: str
    is_active: bool
    hours: HoursJson
    time_off: Sequence[Interval]
    is_free: bool
    booked_seconds: int


class SlotService(NamedTuple):
    """A salon's service. `duration` is in s; no `resource_ids` means all."""

    is_active: bool
    resource_ids: list[str]
    name: str
    duration: int
    price_micros: int
    currency_code: str


class Slot(NamedTuple):
    """What decides about a time.

    `time_off` is that of the salon. `buffers` are those of a new booking, in s. `already_booked` is the code of another
    booking of the customer, if the salon allows one at a time.
    """

    rules: Rules
    zone: ZoneInfo
    hours: HoursJson
    time_off: Sequence[Interval]
    service: SlotService | None
    buffers: tuple[int, int]
    already_booked: str
    candidates: list[Candidate]

    def place(self, candidate: Candidate | None) -> Place:
        """Return where a candidate would be booked; for None the salon alone. See `rules.resource_calendar`."""
        salon = rules.salon_calendar(self.hours)
        if candidate is None:
            return Place(self.zone, salon, salon, self.time_off)
        own = rules.resource_calendar(self.hours, candidate.hours)
        return Place(self.zone, salon, own, candidate.time_off, candidate.is_active)


def read_slot(
    salon_id: str,
    start: datetime,
    end: datetime | None,
    resource_ids: Sequence[str] | None,
    now: datetime,
    *,
    service_id: str = "",
    customer: tuple[str, str] = ("", ""),
    booking_id: str | None = None,
    compare: bool = False,
    ignore_rules: bool = False,
) -> Statement[Slot | None]:
    """Read what decides about a booking of a time; None for an unknown salon.

    Without an `end` the service's duration counts. The candidates are those of `resource_ids` that exist; for None,
    those of the service. `customer` are a phone number and a user_id. `booking_id` names a booking that is changed, and
    so in no one's way. Only with `compare` candidates know whether they are free, and how long they are booked; with
    `ignore_rules` for a booking without buffers.
    Source: indexes salons_pkey, services_pkey, resources_pkey, idx_time_off_salon_range, idx_bookings_customer_salon,
    idx_bookings_user_salon, idx_bookings_salon_resource_start; constraint bookings_no_overlap.
    """
    phone, user_id = customer
    params = {
        "salon_id": salon_id,
        "start": start,
        "end": end,
        "resource_ids": list(resource_ids or ()),
        "now": now,
        "service_id": service_id,
        "phone": phone,
        "user_id": user_id,
        "booking_id": booking_id,
        "buffers": 0 if ignore_rules else 1,
    }
    return Statement(_statement(resource_ids is None, compare), params, _read)


_OTHER = """FROM bookings AS b WHERE b.salon_id = s.salon_id AND b.status IN ('PENDING', 'CONFIRMED')
            AND (b.hold_expires_at IS NULL OR b.hold_expires_at > now())
            AND b.booking_id IS DISTINCT FROM %(booking_id)s::uuid"""
# 0 to 2 index scans: one for each ID of the customer.
_ALREADY_BOOKED = f"""
    CASE WHEN (s.booking_rules->>'one_booking_at_a_time_per_customer')::boolean THEN coalesce(
        (SELECT booking_code {_OTHER} AND b.customer_phone = %(phone)s AND b.customer_phone <> ''
            AND b.end_ts > %(now)s LIMIT 1),
        (SELECT booking_code {_OTHER} AND b.customer_user_id = %(user_id)s AND b.customer_user_id <> ''
            AND b.end_ts > %(now)s LIMIT 1)
    ) END"""
_COMPARED = f"""
    NOT EXISTS (
        SELECT {_OTHER} AND b.resource_id = r.resource_id
            AND blocked_range(b.start_ts, b.end_ts, b.buffer_before, b.buffer_after)
                && blocked_range(%(start)s, slot.end_ts,
                    %(buffers)s::int * {buffer_of("before")}, %(buffers)s::int * {buffer_of("after")})
    ) AS is_free, (
        SELECT coalesce(sum(extract(epoch FROM b.end_ts - b.start_ts)), 0)::bigint {_OTHER}
            AND b.resource_id = r.resource_id
            AND b.start_ts >= date_trunc('day', %(start)s::timestamptz, s.time_zone)
            AND b.start_ts < (date_trunc('day', %(start)s::timestamptz AT TIME ZONE s.time_zone) + interval '1 day')
                AT TIME ZONE s.time_zone
    ) AS booked_seconds"""


@cache
def _statement(of_service: bool, compare: bool) -> str:
    which = "(v.resource_ids = '{}' OR r.resource_id = ANY (v.resource_ids))"
    if not of_service:
        which = "r.resource_id = ANY (%(resource_ids)s::text[])"
    return f"""
        SELECT s.time_zone, s.opening_hours, s.special_hours, s.booking_rules, {_ALREADY_BOOKED} AS already_booked,
            v.active, v.resource_ids, v.name, v.duration, {buffer_of("before")}, {buffer_of("after")},
            v.price_micros, v.currency_code,
            r.resource_id, r.active, r.working_hours, r.special_hours, off.starts, off.ends,
            {_COMPARED if compare else "NULL::boolean, NULL::bigint"}
        FROM salons AS s
        LEFT JOIN services AS v ON v.salon_id = s.salon_id AND v.service_id = %(service_id)s
        CROSS JOIN LATERAL (
            SELECT coalesce(%(end)s::timestamptz, %(start)s::timestamptz + v.duration * interval '1 second') AS end_ts
        ) AS slot
        LEFT JOIN resources AS r ON r.salon_id = s.salon_id AND r.deleted_at IS NULL AND {which}
        CROSS JOIN LATERAL (
            SELECT array_agg(floor(extract(epoch FROM t.start_ts))::bigint) AS starts,
                array_agg(ceil(extract(epoch FROM t.end_ts))::bigint) AS ends
            FROM time_off AS t WHERE t.salon_id = s.salon_id
                AND (t.resource_id IS NULL OR t.resource_id = r.resource_id)
                AND tstzrange(t.start_ts, t.end_ts) && tstzrange(%(start)s, slot.end_ts)
        ) AS off
        WHERE s.salon_id = %(salon_id)s"""


def _read(_: list[str], rows: list[Any]) -> Slot | None:
    if not rows:
        return None
    zone, hours, special, booking_rules, already_booked, is_active, done_by, name, duration = rows[0][:9]
    before, after, price_micros, currency = rows[0][9:13]
    candidates = []
    for row in rows:
        resource_id, active, working, own_special = row[13:17]
        if resource_id is not None:
            own_hours = HoursJson(working, own_special)
            candidates.append(Candidate(resource_id.decode(), active, own_hours, _time_off(row), row[19], row[20]))
    found = None
    if name is not None:
        names = list(map(bytes.decode, done_by))
        found = SlotService(is_active, names, name.decode(), duration, price_micros, currency.decode())
    booked = (already_booked or b"").decode()
    return Slot(
        rules.rules_of(booking_rules),
        ZoneInfo(zone.decode()),
        HoursJson(hours, special),
        _time_off(rows[0]),
        found,
        (before, after),
        booked,
        candidates,
    )


def _time_off(row: Any) -> list[Interval]:
    return list(zip(row[17] or (), row[18] or (), strict=True))
