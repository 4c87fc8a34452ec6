"""The statements that change bookings; each also writes their history.

A writer that blocks a resource's time takes `resource_lock` first: two transactions that insert overlapping rows into
the index of the constraint bookings_no_overlap would deadlock. A writer that frees time needs no lock.

Times of change are statement_timestamp(), taken when the locks are held. now() is the time of BEGIN: a transaction that
waited for a lock would date its change before the one that it waited for.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import encode_row, fetch_returned, fetch_rows
from parlor.booking.v1.booking_pb2 import (
    Booking,
    BookingStatus,
    CreateBookingRequest,
    EraseCustomerResponse,
    RescheduleBookingRequest,
    UpdateBookingStatusRequest,
)
from services.booking.booking_queries import BOOKING
from services.phones import parts

_ROW = (
    "salon_id, booking_id, booking_code, customer_phone, customer_name, resource_id, service_name, start_ts, end_ts,"
    " status, notes, revision, created_at, updated_at, hold_expires_at"
)
# The start of a statement that blocks a resource's time: it creates the resource if it is new, and cancels the expired
# holds that overlap. Only a PENDING booking has a hold, but both statuses are named, since the partial index of the
# constraint covers both; for one status Postgres would read all of the salon's by idx_bookings_salon_status_start.
# The next CTE, `booking`, must use _HOLDS_CANCELLED: the constraint then sees that the holds are cancelled.
_PREPARE_SLOT = f"""
    WITH resource AS (
        INSERT INTO resources (salon_id, resource_id, name)
        SELECT %(salon_id)s, %(resource_id)s, %(resource_id)s WHERE %(resource_id)s::text IS NOT NULL
        ON CONFLICT ON CONSTRAINT resources_pkey DO NOTHING
    ), expired AS (
        UPDATE bookings SET status = 'CANCELLED', revision = revision + 1, updated_at = statement_timestamp()
        WHERE salon_id = %(salon_id)s AND resource_id = %(resource_id)s
            AND tstzrange(start_ts, end_ts) && tstzrange(%(start)s, %(end)s)
            AND status IN ('PENDING', 'CONFIRMED') AND hold_expires_at <= now()
            AND booking_id IS DISTINCT FROM %(booking_id)s::uuid
        RETURNING {_ROW}
    )"""
_HOLDS_CANCELLED = "(SELECT count(*) FROM expired) >= 0"
_CHANGED = f"SELECT {_ROW}, %(type)s::text AS type, %(actor)s::text AS actor, %(reason)s::text AS reason FROM booking"
_CHANGED_AND_EXPIRED = f"{_CHANGED} UNION ALL SELECT {_ROW}, 'STATUS_CHANGED', 'system', 'HOLD_EXPIRED' FROM expired"
_EXPIRED_CODES = "ARRAY(SELECT booking_code FROM expired), "


def _write_history(changes: str, first_column: str = "") -> str:
    """Return the end of a statement, which writes the history and the feed of `changes` and returns the booking.

    `before` reads the statement's snapshot: bookings as they were; a new booking has no row there.
    """
    return f""", history AS (
        INSERT INTO booking_events (salon_id, booking_id, revision, type, actor, reason, from_status, to_status,
            from_start_ts, from_end_ts, to_start_ts, to_end_ts, from_resource_id, to_resource_id, created_at)
        SELECT salon_id, booking_id, after.revision, after.type, after.actor, after.reason, before.status, after.status,
            before.start_ts, before.end_ts, after.start_ts, after.end_ts, before.resource_id, after.resource_id,
            after.updated_at
        FROM ({changes}) AS after LEFT JOIN bookings AS before USING (salon_id, booking_id)
    ), changes AS (
        INSERT INTO booking_changes (salon_id, type, booking_code, revision)
        SELECT salon_id, type, booking_code, revision FROM ({changes}) AS after
    )
    SELECT {first_column}{BOOKING} FROM booking"""


def resource_lock(salon_id: str, resource_id: str) -> str:
    """Return the name of the lock on a resource's time. It is taken before any lock on a row."""
    return f"resource {salon_id} {resource_id}"


class BookedSlot(NamedTuple):
    """A Booking, encoded, whose time is now blocked, and the codes of the expired holds that were cancelled for it."""

    booking: bytes
    cancelled: list[str]


class LockedBooking(NamedTuple):
    """A booking, locked until the transaction ends, and whether it is an expired hold."""

    booking: Booking
    hold_expired: bool


def insert_booking(
    request: CreateBookingRequest, customer_phone: str, booking_code: str, start: datetime | None, end: datetime | None
) -> Statement[BookedSlot | None]:
    """Insert a booking; return it, or None if it overlaps another booking of its resource.

    Raises: ForeignKeyViolation of bookings_salon_id_fkey, resources_salon_id_fkey; UniqueViolation of
    booking_code_salon_id.
    Source: constraint bookings_no_overlap.
    """
    status = BookingStatus.Name(request.status or BookingStatus.BOOKING_STATUS_PENDING)
    params = {
        "salon_id": request.salon_id,
        "booking_id": None,
        "code": booking_code,
        "phone": customer_phone,
        "name": request.customer_name,
        "resource_id": request.resource_id or None,
        "service": request.service_name,
        "start": start,
        "end": end,
        "status": status.removeprefix("BOOKING_STATUS_"),
        "notes": request.notes,
        "hold": request.hold_duration.seconds if request.HasField("hold_duration") else None,
        "type": "CREATED",
        "actor": request.actor,
        "reason": "",
    }
    return Statement(_INSERT_BOOKING, params, _read_booked_slot)


_INSERT_BOOKING = f"""{_PREPARE_SLOT}, booking AS (
        INSERT INTO bookings (salon_id, booking_code, customer_phone, customer_name, resource_id, service_name,
            start_ts, end_ts, status, notes, hold_expires_at)
        SELECT %(salon_id)s, %(code)s, %(phone)s, %(name)s, %(resource_id)s, %(service)s, %(start)s, %(end)s,
            %(status)s, %(notes)s, now() + %(hold)s::int * interval '1 s'
        WHERE {_HOLDS_CANCELLED}
        ON CONFLICT ON CONSTRAINT bookings_no_overlap DO NOTHING
        RETURNING {_ROW}
    ){_write_history(_CHANGED_AND_EXPIRED, _EXPIRED_CODES)}"""


def _read_booked_slot(names: list[str], rows: list[Any]) -> BookedSlot | None:
    if not rows:
        return None
    codes, *booking = rows[0]
    return BookedSlot(encode_row(Booking, names[1:], booking), list(map(bytes.decode, codes)))


def resource_of(salon_id: str, booking_code: str) -> Statement[str | None]:
    """Return the resource of a booking, "" if it has none; None if there is no such booking."""
    query = """
        SELECT coalesce(resource_id, '') FROM bookings WHERE booking_code = %(code)s AND salon_id = %(salon_id)s"""
    params = {"salon_id": salon_id, "code": booking_code}
    return Statement(query, params, lambda _, rows: rows[0][0].decode() if rows else None)


def lock_booking(salon_id: str, booking_code: str) -> Statement[LockedBooking | None]:
    """Lock a booking until the transaction ends; return it, or None if there is no such booking."""
    return Statement(_LOCK_BOOKING, {"salon_id": salon_id, "code": booking_code}, _read_locked_booking)


_LOCK_BOOKING = f"""
    SELECT coalesce(status = 'PENDING' AND hold_expires_at <= now(), false), {BOOKING}
    FROM bookings WHERE booking_code = %(code)s AND salon_id = %(salon_id)s FOR UPDATE"""


def _read_locked_booking(names: list[str], rows: list[Any]) -> LockedBooking | None:
    if not rows:
        return None
    hold_expired, *booking = rows[0]
    return LockedBooking(Booking.FromString(encode_row(Booking, names[1:], booking)), hold_expired)


def update_booking_status(booking: Booking, request: UpdateBookingStatusRequest) -> Statement[bytes]:
    """Set a booking's status; return the booking, encoded. A hold that is confirmed is no longer a hold."""
    params = {
        "salon_id": booking.salon_id,
        "booking_id": booking.booking_id,
        "status": BookingStatus.Name(request.status).removeprefix("BOOKING_STATUS_"),
        "type": "STATUS_CHANGED",
        "actor": request.actor,
        "reason": request.reason,
    }
    return Statement(_UPDATE_STATUS, params, lambda names, rows: encode_row(Booking, names, rows[0]))


_UPDATE_STATUS = f"""
    WITH booking AS (
        UPDATE bookings SET status = %(status)s, revision = revision + 1, updated_at = statement_timestamp(),
            hold_expires_at = CASE WHEN %(status)s = 'CANCELLED' THEN hold_expires_at END
        WHERE salon_id = %(salon_id)s AND booking_id = %(booking_id)s
        RETURNING {_ROW}
    ){_write_history(_CHANGED)}"""


def reschedule_booking(
    booking: Booking, request: RescheduleBookingRequest, start: datetime, end: datetime
) -> Statement[BookedSlot | None]:
    """Move a booking to a time, and to the request's resource if it names one.

    Raises: ExclusionViolation of bookings_no_overlap if it overlaps another booking of the resource.
    Source: constraint bookings_no_overlap; index bookings_pkey.
    """
    params = {
        "salon_id": booking.salon_id,
        "booking_id": booking.booking_id,
        "resource_id": request.resource_id or booking.resource_id or None,
        "start": start,
        "end": end,
        "type": "RESCHEDULED",
        "actor": request.actor,
        "reason": request.reason,
    }
    return Statement(_RESCHEDULE, params, _read_booked_slot)


_RESCHEDULE = f"""{_PREPARE_SLOT}, booking AS (
        UPDATE bookings SET start_ts = %(start)s, end_ts = %(end)s, resource_id = %(resource_id)s,
            revision = revision + 1, updated_at = statement_timestamp()
        WHERE salon_id = %(salon_id)s AND booking_id = %(booking_id)s AND {_HOLDS_CANCELLED}
        RETURNING {_ROW}
    ){_write_history(_CHANGED_AND_EXPIRED, _EXPIRED_CODES)}"""


async def resources_of_customer(conn: AsyncConnection[Any], salon_id: str, customer_phone: str) -> list[str]:
    """Return the resources whose time a customer's bookings block.

    Source: index idx_bookings_customer_salon.
    """
    query = """
        SELECT DISTINCT resource_id FROM bookings
        WHERE customer_phone = %s AND salon_id = %s AND resource_id IS NOT NULL
            AND status IN ('PENDING', 'CONFIRMED')"""
    _, rows = await fetch_rows(conn, query, (customer_phone, salon_id))
    return [row[0] for row in rows]


async def lock_bookings_of_customer(
    conn: AsyncConnection[Any], salon_id: str, customer_phone: str
) -> list[tuple[str, str, str | None]]:
    """Lock a customer's bookings until the transaction ends.

    Shape:  a list of booking_id, booking_code and the resource whose time the booking blocks, if any.
    Source: index idx_bookings_customer_salon.
    """
    query = """
        SELECT booking_id::text, booking_code, CASE WHEN status IN ('PENDING', 'CONFIRMED') THEN resource_id END
        FROM bookings WHERE customer_phone = %s AND salon_id = %s ORDER BY booking_id FOR UPDATE"""
    _, rows = await fetch_rows(conn, query, (customer_phone, salon_id))
    return rows


async def erase_customer(
    conn: AsyncConnection[Any], salon_id: str, customer_phone: str, booking_ids: Sequence[str]
) -> EraseCustomerResponse:
    """Remove a customer from their locked bookings, the history of these, and kept replies; return how many bookings.

    The bookings must be locked by an earlier statement: this one's snapshot then has all their history.
    A kept reply is the customer's if it contains the bytes of a customer_phone field with their number. An actor is
    emptied if its digits contain those of the number.
    Source: indexes bookings_pkey, booking_events_pkey, booking_requests_pkey.
    """
    query = """
        WITH booking AS (
            UPDATE bookings SET customer_phone = '', customer_name = '', notes = '', revision = revision + 1,
                updated_at = statement_timestamp()
            WHERE salon_id = %(salon_id)s AND booking_id = ANY(%(booking_ids)s::uuid[])
            RETURNING salon_id, booking_id, booking_code, revision
        ), changes AS (
            INSERT INTO booking_changes (salon_id, type, booking_code, revision)
            SELECT salon_id, 'UPDATED', booking_code, revision FROM booking
        ), history AS (
            UPDATE booking_events AS e
            SET reason = CASE WHEN e.reason = 'HOLD_EXPIRED' THEN e.reason ELSE '' END,
                actor = CASE
                    WHEN position(%(digits)s IN regexp_replace(e.actor, '[^0-9]', '', 'g')) > 0 THEN '' ELSE e.actor
                END
            FROM booking AS b WHERE e.salon_id = b.salon_id AND e.booking_id = b.booking_id
        ), replies AS (
            UPDATE booking_requests SET reply = ''
            WHERE salon_id = %(salon_id)s AND position(%(field)s::bytea IN reply) > 0
        )
        SELECT count(*)::int AS bookings FROM booking"""
    field = Booking(customer_phone=customer_phone).SerializeToString()
    _, digits, _ = parts(customer_phone)
    params = {"salon_id": salon_id, "digits": digits, "booking_ids": list(booking_ids), "field": field}
    return await fetch_returned(conn, EraseCustomerResponse, query, params)
