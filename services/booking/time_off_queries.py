"""The statements that read and write time off: when a resource, or a whole salon, can't be booked."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import SNAPSHOT_XMIN, Loaded, encode_row, encoder, fetch_pages, unnest, where
from libs.server import Page, RpcError, given, names_given, responses
from libs.server.errors import not_found
from parlor.booking.v1.booking_pb2 import Booking, CreateTimeOffRequest, ListTimeOffResponse, TimeOff
from services.booking.booking_queries import BOOKING
from services.booking.salon_queries import KNOWN_SALON

TIME_OFF = (
    "time_off_id::text, salon_id, resource_id, start_ts AS start_time, end_ts AS end_time, reason,"
    " created_at AS create_time"
)
MOST_BOOKINGS = 200  # in the reply to CreateTimeOff


def insert_time_off(request: CreateTimeOffRequest, start: datetime, end: datetime) -> Statement[bytes | None]:
    """Insert a time off; return the TimeOff, encoded, or None if the salon has no such resource.

    Raises: ForeignKeyViolation of time_off_salon_id_fkey.
    """
    query = f"""
        WITH changed AS (
            INSERT INTO time_off (salon_id, resource_id, start_ts, end_ts, reason, created_at)
            SELECT %(salon_id)s, %(resource_id)s, %(start)s, %(end)s, %(reason)s, statement_timestamp()
            WHERE %(resource_id)s::text IS NULL OR EXISTS (
                SELECT FROM resources
                WHERE salon_id = %(salon_id)s AND resource_id = %(resource_id)s AND deleted_at IS NULL
            )
            RETURNING time_off_id, salon_id, resource_id, start_ts, end_ts, reason, created_at
        ), {_CHANGES}
        SELECT {TIME_OFF} FROM changed"""
    params = {
        "salon_id": request.salon_id,
        "resource_id": request.resource_id or None,
        "start": start,
        "end": end,
        "reason": request.reason,
    }
    return Statement(query, params, lambda names, rows: encode_row(TimeOff, names, rows[0]) if rows else None)


_CHANGES = """changes AS (
            INSERT INTO booking_changes (salon_id, type, resource_id, time_off_id)
            SELECT salon_id, 'TIME_OFF', resource_id, time_off_id FROM changed
        )"""


def bookings_in(salon_id: str, resource_id: str, start: datetime, end: datetime) -> Statement[list[bytes]]:
    """Return the first bookings, encoded, of a resource or of the whole salon that block a part of a time.

    Source: index idx_bookings_salon_range.
    """
    of_resource = " AND resource_id = %(resource_id)s" if resource_id else ""
    query = f"""
        SELECT {BOOKING} FROM bookings
        WHERE salon_id = %(salon_id)s{of_resource} AND tstzrange(start_ts, end_ts) && tstzrange(%(start)s, %(end)s)
            AND status IN ('PENDING', 'CONFIRMED') AND (hold_expires_at IS NULL OR hold_expires_at > now())
        ORDER BY start_ts, bookings.booking_id LIMIT {MOST_BOOKINGS}"""
    params = {"salon_id": salon_id, "resource_id": resource_id, "start": start, "end": end}
    return Statement(query, params, _read_bookings)


def _read_bookings(names: list[str], rows: list[Any]) -> list[bytes]:
    return encoder(Booking, *names)(list(zip(*rows, strict=True))) if rows else []


def delete_time_off(salon_id: str, time_off_id: str) -> Statement[bool]:
    """Delete a time off; return whether there was one.

    Source: index time_off_pkey.
    """
    query = f"""
        WITH changed AS (
            DELETE FROM time_off WHERE salon_id = %(salon_id)s AND time_off_id = %(time_off_id)s
            RETURNING salon_id, resource_id, time_off_id
        ), {_CHANGES}
        SELECT true FROM changed"""
    return Statement(query, {"salon_id": salon_id, "time_off_id": time_off_id}, lambda _, rows: bool(rows))


class TimeOffFilters(NamedTuple):
    """Which time off of a salon to list: what ends after `start_time` and starts before `end_time`."""

    salon_id: str
    resource_id: str
    start_time: datetime | None
    end_time: datetime | None


async def list_time_off(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[TimeOffFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListTimeOffResponse for each page, ordered by start_ts; SALON_NOT_FOUND for an unknown salon.

    All pages use the same filters, with different values.
    Source: index idx_time_off_salon_start.
    """
    query = time_off_statement(names_given(wanted[0]))
    lists = await fetch_pages(conn, TimeOff, query, list(map(given, wanted)))
    return responses(
        wanted,
        lists,
        ListTimeOffResponse,
        "start_time",
        "time_off_id",
        lambda filters: not_found("salon", filters.salon_id),
    )


@cache
def time_off_statement(names: tuple[str, ...]) -> str:
    """Return the statement that lists time off; `names` are those of its parameters."""
    types = {
        "salon_id": "text",
        "resource_id": "text",
        "start_time": "timestamptz",
        "end_time": "timestamptz",
        "rows": "int",
        "after": "bigint",
        "id": "uuid",
    }
    conditions = {
        "salon_id": "salon_id = wanted.salon_id",
        "resource_id": "resource_id = wanted.resource_id",
        "start_time": "end_ts > wanted.start_time",
        "end_time": "start_ts < wanted.end_time",
        "after": "(start_ts, time_off_id) > (timestamptz 'epoch' + wanted.after * interval '1 us', wanted.id)",
    }
    return f"""
        SELECT xmin, place, page.*
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}, {KNOWN_SALON}
        LEFT JOIN LATERAL (
            SELECT {TIME_OFF} FROM time_off WHERE {where(conditions, names)}
            ORDER BY start_ts, time_off.time_off_id LIMIT wanted.rows
        ) AS page ON true"""
