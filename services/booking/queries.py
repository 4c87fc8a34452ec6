"""The statements of the booking service, one function each."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from psycopg import AsyncConnection, errors
from psycopg.types.json import Jsonb

from libs.db import STAMP, Loaded, fetch_all, fetch_one, fetch_page, fetch_returned, fetch_stamped
from libs.rpc import Page
from libs.rpc.errors import invalid_fields
from parlor.booking.v1.booking_pb2 import Booking, BookingStatus, CreateBookingRequest, Salon

SALON = (
    "salon_id, phone_number_id, name, time_zone, region_code, opening_hours,"
    " revision::text AS etag, created_at AS create_time, updated_at AS update_time"
)
BOOKING = (
    "booking_id::text, booking_code, salon_id, customer_phone, customer_name, resource_id, service_name,"
    " start_ts AS start_time, end_ts AS end_time, 'BOOKING_STATUS_' || status AS status, notes,"
    " revision, revision::text AS etag, created_at AS create_time, updated_at AS update_time"
)


async def salons_by_id(conn: AsyncConnection[Any], salon_ids: Sequence[str]) -> list[Loaded[Salon | None]]:
    """Return the salon of each id, in the order of the ids.

    Source: index salons_pkey.
    """
    query = f"""
        SELECT stamp, {SALON}
        FROM {STAMP}, unnest(%s::text[]) WITH ORDINALITY AS wanted (id, place)
        LEFT JOIN salons ON salon_id = wanted.id
        ORDER BY place"""
    return await fetch_stamped(conn, Salon, query, [salon_ids])


async def salons_by_phone_number_id(
    conn: AsyncConnection[Any], phone_number_ids: Sequence[str]
) -> list[Loaded[Salon | None]]:
    """Return the salon of each WhatsApp phone_number_id, in the order of the ids.

    Source: index salons_phone_number_id_key.
    """
    query = f"""
        SELECT stamp, {SALON}
        FROM {STAMP}, unnest(%s::text[]) WITH ORDINALITY AS wanted (id, place)
        LEFT JOIN salons ON phone_number_id = wanted.id
        ORDER BY place"""
    return await fetch_stamped(conn, Salon, query, [phone_number_ids])


async def list_salons(conn: AsyncConnection[Any], page: Page) -> list[Salon]:
    """Return up to one salon more than the page has, ordered by salon_id.

    Source: index salons_pkey.
    """
    query = f"SELECT {SALON} FROM salons WHERE salon_id > %s ORDER BY salon_id LIMIT %s"
    return await fetch_all(conn, Salon, query, (page.after_id or "", page.size + 1))


async def lock_salon(conn: AsyncConnection[Any], salon_id: str) -> Salon | None:
    """Return a salon, locked until the transaction ends."""
    return await fetch_one(conn, Salon, f"SELECT {SALON} FROM salons WHERE salon_id = %s FOR UPDATE", [salon_id])


async def upsert_salon(conn: AsyncConnection[Any], salon: Salon) -> Salon:
    """Insert or replace a salon; return it as it is now.

    Raises: UniqueViolation of salons_phone_number_id_key; INVALID_FIELD for a zone that Postgres does not know.
    """
    query = f"""
        INSERT INTO salons AS s (salon_id, phone_number_id, name, time_zone, region_code, opening_hours)
        VALUES (%s, %s, %s, %s, %s, %s)
        ON CONFLICT (salon_id) DO UPDATE SET
            phone_number_id = excluded.phone_number_id, name = excluded.name, time_zone = excluded.time_zone,
            region_code = excluded.region_code, opening_hours = excluded.opening_hours,
            revision = s.revision + 1, updated_at = now()
        RETURNING {SALON}"""
    hours = Jsonb([MessageToDict(hours, preserving_proto_field_name=True) for hours in salon.opening_hours])
    row = (salon.salon_id, salon.phone_number_id, salon.name, salon.time_zone, salon.region_code, hours)
    try:
        return await fetch_returned(conn, Salon, query, row)
    except errors.InvalidParameterValue as error:
        raise invalid_fields([("salon.time_zone", "is not known to the database")]) from error


async def insert_booking(
    conn: AsyncConnection[Any],
    request: CreateBookingRequest,
    booking_code: str,
    start: datetime | None,
    end: datetime | None,
) -> Booking | None:
    """Insert a booking; return it, or None if its resource is taken at that time.

    Raises: ForeignKeyViolation of bookings_salon_id_fkey; UniqueViolation of booking_code_salon_id.
    """
    query = f"""
        INSERT INTO bookings (salon_id, booking_code, customer_phone, customer_name, resource_id, service_name,
            start_ts, end_ts, status, notes)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT ON CONSTRAINT bookings_no_overlap DO NOTHING
        RETURNING {BOOKING}"""
    status = request.status or BookingStatus.BOOKING_STATUS_PENDING
    row = (
        request.salon_id,
        booking_code,
        request.customer_phone,
        request.customer_name,
        request.resource_id or None,
        request.service_name,
        start,
        end,
        BookingStatus.Name(status).removeprefix("BOOKING_STATUS_"),
        request.notes,
    )
    return await fetch_one(conn, Booking, query, row)


async def bookings_by_code(conn: AsyncConnection[Any], keys: Sequence[tuple[str, str]]) -> list[Loaded[Booking | None]]:
    """Return the booking of each (salon_id, booking_code), in the order of the keys.

    Source: report, "Unique Constraints"; index booking_code_salon_id.
    """
    query = f"""
        SELECT stamp, {BOOKING}
        FROM {STAMP}, unnest(%s::text[], %s::text[]) WITH ORDINALITY AS wanted (salon, code, place)
        LEFT JOIN bookings ON booking_code = wanted.code AND salon_id = wanted.salon
        ORDER BY place"""
    return await fetch_stamped(conn, Booking, query, [list(column) for column in zip(*keys, strict=True)])


async def list_bookings(
    conn: AsyncConnection[Any],
    salon_id: str,
    status: str,
    customer_phone: str,
    start: datetime | None,
    end: datetime | None,
    page: Page,
) -> Loaded[list[Booking]]:
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
    after = {"after": page.after_micros, "id": page.after_id, "limit": page.size + 1}
    return await fetch_page(conn, Booking, query, params | after)


async def lock_booking(conn: AsyncConnection[Any], salon_id: str, booking_code: str) -> Booking | None:
    """Return a booking, locked until the transaction ends."""
    query = f"SELECT {BOOKING} FROM bookings WHERE booking_code = %s AND salon_id = %s FOR UPDATE"
    return await fetch_one(conn, Booking, query, (booking_code, salon_id))


async def update_booking_status(conn: AsyncConnection[Any], booking: Booking, status: str) -> Booking:
    """Set a booking's status; return it as it is now."""
    query = f"""
        UPDATE bookings SET status = %s, revision = revision + 1, updated_at = now()
        WHERE salon_id = %s AND booking_id = %s
        RETURNING {BOOKING}"""
    return await fetch_returned(conn, Booking, query, (status, booking.salon_id, booking.booking_id))
