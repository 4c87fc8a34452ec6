"""The statements that change bookings, each with the history it makes, one function each.

Whoever takes a resource's time makes the resource if nobody has, and cancels the holds in the way that have expired, by
the same statement. Its change waits for that: an exclusion constraint sees what its own statement has cancelled.

A change is made at its statement_timestamp(), when its locks are held: by now(), which is that of the BEGIN, one that
had to wait would be earlier than the one before.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import encode_row, fetch_returned, fetch_rows
from parlor.booking.v1.booking_pb2 import Booking, BookingStatus, CreateBookingRequest, EraseCustomerResponse
from services.booking.booking_queries import BOOKING
from services.phones import parts

_ROW = (
    "salon_id, booking_id, booking_code, customer_phone, customer_name, resource_id, service_name, start_ts, end_ts,"
    " status, notes, revision, created_at, updated_at, hold_expires_at"
)
# Only a PENDING booking has a hold; both states are named for the constraint's index to serve. A status alone would be
# looked for among all of the salon's, by idx_bookings_salon_status_start.
# A statement that takes a time goes on with a CTE `booking`, which must ask for _CANCELLED.
_TAKE = f"""
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
_CANCELLED = "(SELECT count(*) FROM expired) >= 0"
_SAID = f"SELECT {_ROW}, %(type)s::text AS type, %(actor)s::text AS actor, %(reason)s::text AS reason FROM booking"
_EXPIRED = "ARRAY(SELECT booking_code FROM expired), "
_TAKEN = f"{_SAID} UNION ALL SELECT {_ROW}, 'STATUS_CHANGED', 'system', 'HOLD_EXPIRED' FROM expired"


def _and_history(changes: str, besides: str = "") -> str:
    """Return the end of a statement: it writes the history of what changed and returns the booking, after `besides`.

    `before` is what the statement's snapshot has: the booking as it was, nothing of a new one.
    """
    return f""", history AS (
        INSERT INTO booking_events (salon_id, booking_id, revision, type, actor, reason, from_status, to_status,
            from_start_ts, from_end_ts, to_start_ts, to_end_ts, from_resource_id, to_resource_id, created_at)
        SELECT salon_id, booking_id, after.revision, after.type, after.actor, after.reason, before.status, after.status,
            before.start_ts, before.end_ts, after.start_ts, after.end_ts, before.resource_id, after.resource_id,
            after.updated_at
        FROM ({changes}) AS after LEFT JOIN bookings AS before USING (salon_id, booking_id)
    )
    SELECT {besides}{BOOKING} FROM booking"""


class Said(NamedTuple):
    """What the history keeps of a request."""

    actor: str
    reason: str


class Taken(NamedTuple):
    """A booking that has its time now, encoded, and the codes of the expired holds that were cancelled for it."""

    booking: bytes
    expired: list[str]


class Locked(NamedTuple):
    """A booking, locked until the transaction ends, and whether it is a hold that has expired."""

    booking: Booking
    hold_expired: bool


def insert_booking(
    request: CreateBookingRequest, customer_phone: str, booking_code: str, start: datetime | None, end: datetime | None
) -> Statement[Taken | None]:
    """Insert a booking; return it, None if its resource is taken at that time.

    Raises: ForeignKeyViolation of bookings_salon_id_fkey, resources_salon_id_fkey; UniqueViolation of
    booking_code_salon_id.
    Source: constraint bookings_no_overlap.
    """
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
        "status": BookingStatus.Name(request.status or BookingStatus.BOOKING_STATUS_PENDING).removeprefix(
            "BOOKING_STATUS_"
        ),
        "notes": request.notes,
        "hold": request.hold_duration.seconds if request.HasField("hold_duration") else None,
        "type": "CREATED",
        "actor": request.actor,
        "reason": "",
    }
    return Statement(_INSERT_BOOKING, params, _taken)


_INSERT_BOOKING = f"""{_TAKE}, booking AS (
        INSERT INTO bookings (salon_id, booking_code, customer_phone, customer_name, resource_id, service_name,
            start_ts, end_ts, status, notes, hold_expires_at)
        SELECT %(salon_id)s, %(code)s, %(phone)s, %(name)s, %(resource_id)s, %(service)s, %(start)s, %(end)s,
            %(status)s, %(notes)s, now() + %(hold)s::int * interval '1 s'
        WHERE {_CANCELLED}
        ON CONFLICT ON CONSTRAINT bookings_no_overlap DO NOTHING
        RETURNING {_ROW}
    ){_and_history(_TAKEN, _EXPIRED)}"""


def _taken(names: list[str], rows: list[Any]) -> Taken | None:
    """Read a booking that took its time, if it did, behind the codes of the holds that had expired."""
    if not rows:
        return None
    return Taken(encode_row(Booking, names[1:], rows[0][1:]), [code.decode() for code in rows[0][0]])


def resource_of(salon_id: str, booking_code: str) -> Statement[str | None]:
    """Return the resource of a booking, empty if it has none; None if there is no such booking."""
    query = """
        SELECT coalesce(resource_id, '') FROM bookings WHERE booking_code = %(code)s AND salon_id = %(salon_id)s"""
    params = {"salon_id": salon_id, "code": booking_code}
    return Statement(query, params, lambda _, rows: rows[0][0].decode() if rows else None)


def lock_booking(salon_id: str, booking_code: str) -> Statement[Locked | None]:
    """Return a booking, locked until the transaction ends."""
    return Statement(_LOCK_BOOKING, {"salon_id": salon_id, "code": booking_code}, _locked)


_LOCK_BOOKING = f"""
    SELECT coalesce(status = 'PENDING' AND hold_expires_at <= now(), false), {BOOKING}
    FROM bookings WHERE booking_code = %(code)s AND salon_id = %(salon_id)s FOR UPDATE"""


def _locked(names: list[str], rows: list[Any]) -> Locked | None:
    return Locked(Booking.FromString(encode_row(Booking, names[1:], rows[0][1:])), rows[0][0]) if rows else None


def update_booking_status(booking: Booking, status: str, said: Said) -> Statement[bytes]:
    """Set a booking's status; return it as it is now. A hold that is confirmed is none any more."""
    params = {"salon_id": booking.salon_id, "booking_id": booking.booking_id, "status": status}
    return Statement(_UPDATE_STATUS, params | {"type": "STATUS_CHANGED", **said._asdict()}, _booking)


_UPDATE_STATUS = f"""
    WITH booking AS (
        UPDATE bookings SET status = %(status)s, revision = revision + 1, updated_at = statement_timestamp(),
            hold_expires_at = CASE WHEN %(status)s = 'CANCELLED' THEN hold_expires_at END
        WHERE salon_id = %(salon_id)s AND booking_id = %(booking_id)s
        RETURNING {_ROW}
    ){_and_history(_SAID)}"""


def _booking(names: list[str], rows: list[Any]) -> bytes:
    return encode_row(Booking, names, rows[0])


def reschedule_booking(
    booking: Booking, resource_id: str, start: datetime, end: datetime, said: Said
) -> Statement[Taken | None]:
    """Move a booking to a time and a resource; return it as it is now.

    Raises: ExclusionViolation of bookings_no_overlap if the resource is taken at that time.
    Source: constraint bookings_no_overlap; index bookings_pkey.
    """
    params = {
        "salon_id": booking.salon_id,
        "booking_id": booking.booking_id,
        "resource_id": resource_id or None,
        "start": start,
        "end": end,
        "type": "RESCHEDULED",
        **said._asdict(),
    }
    return Statement(_RESCHEDULE, params, _taken)


_RESCHEDULE = f"""{_TAKE}, booking AS (
        UPDATE bookings SET start_ts = %(start)s, end_ts = %(end)s, resource_id = %(resource_id)s,
            revision = revision + 1, updated_at = statement_timestamp()
        WHERE salon_id = %(salon_id)s AND booking_id = %(booking_id)s AND {_CANCELLED}
        RETURNING {_ROW}
    ){_and_history(_TAKEN, _EXPIRED)}"""


async def resources_of_customer(conn: AsyncConnection[Any], salon_id: str, customer_phone: str) -> list[str]:
    """Return the resources whose time a customer's bookings take.

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

    Shape:  a list of booking_id, booking_code and the resource whose time the booking takes.
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
    """Remove a customer from their bookings, from the history of these, and from kept replies; return how many.

    The bookings were locked by a statement before: this one sees all that others have said about them.
    A reply is one of theirs if it has their number as its customer_phone: that field's bytes are in it. An actor is
    emptied if its digits hold those of their number.
    Source: indexes bookings_pkey, booking_events_pkey, booking_requests_pkey.
    """
    query = """
        WITH booking AS (
            UPDATE bookings SET customer_phone = '', customer_name = '', notes = '', revision = revision + 1,
                updated_at = statement_timestamp()
            WHERE salon_id = %(salon_id)s AND booking_id = ANY(%(booking_ids)s::uuid[])
            RETURNING salon_id, booking_id
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
