"""The statements that read bookings and their history, one function each."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from libs.db import STAMP, Loaded, fetch_page, fetch_stamped, text_array
from libs.rpc import Page
from parlor.booking.v1.booking_pb2 import Booking, BookingEvent

BOOKING = (
    "booking_id::text, booking_code, salon_id, customer_phone, customer_name, resource_id, service_name,"
    " start_ts AS start_time, end_ts AS end_time, 'BOOKING_STATUS_' || status AS status, notes,"
    " revision, revision::text AS etag, created_at AS create_time, updated_at AS update_time,"
    " hold_expires_at AS hold_expire_time"
)
EVENT = (
    "revision, 'BOOKING_EVENT_TYPE_' || type AS type, actor, reason,"
    " 'BOOKING_STATUS_' || from_status AS from_status, 'BOOKING_STATUS_' || to_status AS to_status,"
    " from_start_ts AS from_start_time, from_end_ts AS from_end_time,"
    " to_start_ts AS to_start_time, to_end_ts AS to_end_time, from_resource_id, to_resource_id,"
    " created_at AS create_time"
)
BOOKINGS_BY_CODE = f"""
    SELECT stamp, {BOOKING}
    FROM {STAMP}, unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (salon, code, place)
    LEFT JOIN bookings ON booking_code = wanted.code AND salon_id = wanted.salon
    ORDER BY place"""


async def bookings_by_code(conn: AsyncConnection[Any], keys: Sequence[tuple[str, str]]) -> list[Loaded[bytes | None]]:
    """Return the booking of each (salon_id, booking_code), in the order of the keys.

    Source: report, "Unique Constraints"; index booking_code_salon_id.
    """
    columns = [text_array(column) for column in zip(*keys, strict=True)]
    return await fetch_stamped(conn, Booking, BOOKINGS_BY_CODE, columns)


async def list_bookings(
    conn: AsyncConnection[Any],
    salon_id: str,
    status: str,
    customer_phone: str,
    start: datetime | None,
    end: datetime | None,
    page: Page,
) -> Loaded[list[bytes]]:
    """Return up to one booking more than the page has, ordered by start_ts.

    Raises: LookupError if there is no such salon.
    Source: report, "Booking Indexes" 1 to 3; indexes idx_bookings_salon_start, idx_bookings_salon_status_start,
    idx_bookings_customer_salon.
    """
    conditions = (
        (" AND status = %(status)s", status),
        (" AND customer_phone = %(customer_phone)s", customer_phone),
        (" AND start_ts >= %(start)s", start),
        (" AND start_ts < %(end)s", end),
        (
            " AND (start_ts, booking_id) > (timestamptz 'epoch' + %(after)s * interval '1 us', %(id)s::uuid)",
            page.after_id,
        ),
    )
    where = "".join(condition for condition, value in conditions if value)
    query = f"""
        SELECT stamp, page.*
        FROM {STAMP} JOIN salons AS s ON s.salon_id = %(salon_id)s
        LEFT JOIN LATERAL (
            SELECT {BOOKING} FROM bookings WHERE salon_id = %(salon_id)s{where}
            ORDER BY start_ts, bookings.booking_id LIMIT %(limit)s
        ) AS page ON true"""
    params = {"salon_id": salon_id, "status": status, "customer_phone": customer_phone, "start": start, "end": end}
    return await fetch_page(conn, Booking, query, params | page.params)


async def list_booking_events(
    conn: AsyncConnection[Any], salon_id: str, booking_code: str, page: Page
) -> Loaded[list[bytes]]:
    """Return up to one event more than the page has of what happened to a booking, oldest first.

    Raises: LookupError if there is no such booking.
    Source: indexes booking_code_salon_id, booking_events_pkey.
    """
    query = f"""
        SELECT stamp, page.*
        FROM {STAMP} JOIN bookings AS b ON b.booking_code = %(booking_code)s AND b.salon_id = %(salon_id)s
        LEFT JOIN LATERAL (
            SELECT b.booking_code, {EVENT} FROM booking_events AS e
            WHERE e.salon_id = b.salon_id AND e.booking_id = b.booking_id AND e.revision > %(after)s
            ORDER BY e.revision LIMIT %(limit)s
        ) AS page ON true"""
    params = {"salon_id": salon_id, "booking_code": booking_code}
    return await fetch_page(
        conn, BookingEvent, query, params | {"after": page.after_micros or 0, "limit": page.size + 1}
    )
