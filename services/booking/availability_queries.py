"""The statement that reads what SearchAvailability depends on."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from libs.db import Statement
from services.booking import rules
from services.booking.rules import HoursJson, Rules
from services.booking.slot_queries import buffer_of


class Bookable(NamedTuple):
    """A resource: when it works, when bookings with their buffers block it, and its own time off.

    `busy` and `time_off` are as Postgres sends them, see `Times.of`.
    """

    is_active: bool
    hours: HoursJson
    busy: bytes | None
    time_off: bytes | None


class Availability(NamedTuple):
    """What the free slots of a salon depend on.

    `duration` is the service's, None without a service. `buffers` are those of a new booking. Both are in s.
    `found_excluded` is false if the booking to be moved does not exist. `resources` are by their ids.
    """

    zone: ZoneInfo
    hours: HoursJson
    rules: Rules
    duration: int | None
    buffers: tuple[int, int]
    found_excluded: bool
    time_off: bytes | None
    resources: dict[str, Bookable]


def read_availability(
    salon_id: str,
    resource_ids: Sequence[str],
    start: int,
    end: int,
    *,
    buffers: tuple[int, int] = (0, 0),
    service_id: str = "",
    excluding_booking_code: str = "",
) -> Statement[Availability | None]:
    """Read the hours and the blocked times of resources from `start` to `end`, in s since 1970; None: no such salon.

    The resources are those of `resource_ids` that exist and do the service, or for none all active ones that do it. The
    buffers are at least `buffers`, in s.
    Source: indexes salons_pkey, services_pkey, resources_pkey, booking_code_salon_id, idx_time_off_salon_range;
    constraint bookings_no_overlap.
    """
    before, after = buffers
    params = {
        "salon_id": salon_id,
        "resource_ids": list(resource_ids),
        "start": start,
        "end": end,
        "before": before,
        "after": after,
        "service_id": service_id,
        "excluding": excluding_booking_code,
    }
    return Statement(_OF_GIVEN if resource_ids else _OF_ALL, params, _read)


_PACKED = "string_agg(int8send(lower(merged)) || int8send(upper(merged)), '' ORDER BY merged)"


def _merged(which: str, ranges: str) -> str:
    """Return the SQL of time ranges, merged and sorted, as `Times.of` reads them; `which` is the end of its FROM."""
    return f"""
        SELECT {_PACKED} AS times
        FROM (SELECT unnest(range_agg({ranges})) AS merged FROM {which}) AS ranges"""


_OFF = "int8range(floor(extract(epoch FROM t.start_ts))::bigint, ceil(extract(epoch FROM t.end_ts))::bigint)"
_OFF_OF = """time_off AS t
                WHERE t.salon_id = %(salon_id)s AND tstzrange(t.start_ts, t.end_ts) && (SELECT time FROM wanted)"""
_BUSY = """int8range(floor(extract(epoch FROM start_ts))::bigint - buffer_before,
                    ceil(extract(epoch FROM end_ts))::bigint + buffer_after)"""


def _statement(named: str, which: str) -> str:
    return f"""
        WITH salon AS MATERIALIZED (
            SELECT s.time_zone, s.opening_hours, s.special_hours, s.booking_rules,
                v.active, v.duration, v.resource_ids,
                greatest(%(before)s::int, {buffer_of("before")}) AS buffer_before,
                greatest(%(after)s::int, {buffer_of("after")}) AS buffer_after,
                %(excluding)s = '' OR EXISTS (
                    SELECT FROM bookings WHERE booking_code = %(excluding)s AND salon_id = %(salon_id)s
                ) AS found_excluded
            FROM salons AS s LEFT JOIN services AS v ON v.salon_id = s.salon_id AND v.service_id = %(service_id)s
            WHERE s.salon_id = %(salon_id)s
        ), wanted AS (
            SELECT tstzrange(
                to_timestamp(%(start)s::bigint - buffer_before), to_timestamp(%(end)s::bigint + buffer_after)) AS time
            FROM salon
        ), off AS MATERIALIZED ({_merged(f"{_OFF_OF} AND t.resource_id IS NULL", _OFF)}
        ), busy AS (
            SELECT resource_id, {_PACKED} AS times
            FROM (
                SELECT resource_id, unnest(range_agg({_BUSY})) AS merged
                FROM bookings
                WHERE salon_id = %(salon_id)s AND {named or "resource_id IS NOT NULL"}
                    AND status IN ('PENDING', 'CONFIRMED')
                    AND blocked_range(start_ts, end_ts, buffer_before, buffer_after) && (SELECT time FROM wanted)
                    AND (hold_expires_at IS NULL OR hold_expires_at > now()) AND booking_code <> %(excluding)s
                GROUP BY resource_id
            ) AS merged
            GROUP BY resource_id
        )
        SELECT salon.*, off.times, r.resource_id, r.active, r.working_hours, r.special_hours, busy.times, own.times
        FROM salon CROSS JOIN off
        LEFT JOIN resources AS r ON r.salon_id = %(salon_id)s AND r.deleted_at IS NULL AND {which}
        LEFT JOIN busy USING (resource_id)
        LEFT JOIN LATERAL ({_merged(f"{_OFF_OF} AND t.resource_id = r.resource_id", _OFF)}
        ) AS own ON true"""


_OF_GIVEN = _statement("resource_id = ANY (%(resource_ids)s::text[])", "r.resource_id = ANY (%(resource_ids)s::text[])")
_DO_THE_SERVICE = "coalesce(salon.resource_ids = '{}' OR r.resource_id = ANY (salon.resource_ids), true)"
_OF_ALL = _statement("", f"r.active AND {_DO_THE_SERVICE}")


def _read(_: list[str], rows: list[Any]) -> Availability | None:
    if not rows:
        return None
    zone, hours, special, booking_rules, is_active, duration, done_by, before, after, found, off = rows[0][:11]
    does = None if not done_by else set(map(bytes.decode, done_by))
    resources = {}
    for row in sorted(rows, key=lambda row: row[11] or b""):
        resource_id, active, working, own_special, busy, own_off = row[11:]
        if resource_id is not None:
            name = resource_id.decode()
            may = active and is_active is not False and (does is None or name in does)
            resources[name] = Bookable(may, HoursJson(working, own_special), busy, own_off)
    return Availability(
        ZoneInfo(zone.decode()),
        HoursJson(hours, special),
        rules.rules_of(booking_rules),
        duration,
        (before, after),
        found,
        off,
        resources,
    )
