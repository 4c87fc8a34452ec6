"""The statements that change bookings; each also writes their history.

A writer that blocks a resource's time takes `resource_lock` first: two transactions that insert overlapping rows into
the index of the constraint bookings_no_overlap would deadlock. A writer that frees time needs no lock.

Times of change are statement_timestamp(), taken when the locks are held. now() is the time of BEGIN: a transaction that
waited for a lock would date its change before the one that it waited for.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import encode_row
from libs.server import moment
from parlor.booking.v1.booking_pb2 import (
    Booking,
    BookingStatus,
    CreateBookingRequest,
    RescheduleBookingRequest,
    UpdateBookingRequest,
    UpdateBookingStatusRequest,
)
from services.booking.booking_queries import BOOKING
from services.booking.rules import Rules, rules_of
from services.booking.slot_queries import buffer_of

_ROW = (
    "salon_id, booking_id, booking_code, customer_phone, customer_name, resource_id, service_name, start_ts, end_ts,"
    " status, notes, revision, created_at, updated_at, hold_expires_at, customer_user_id, service_id, price_micros,"
    " currency_code, buffer_before, buffer_after"
)
HOLDS = 200  # that one transaction ends
BLOCKED = "blocked_range(start_ts, end_ts, buffer_before, buffer_after)"  # the expression of bookings_no_overlap


def _expire_holds(blocked: str) -> str:
    """Return a CTE that ends the expired holds in the way of a time, which `blocked` is the SQL of.

    Only a PENDING booking has a hold, but both statuses are named, since the partial index of the constraint covers
    both; for one status Postgres would read all of the salon's by idx_bookings_salon_status_start. The next CTE,
    `booking`, must use _HOLDS_ENDED: the constraint then sees that the holds have ended.
    """
    return f"""expired AS (
        UPDATE bookings SET status = 'EXPIRED', revision = revision + 1, updated_at = statement_timestamp()
        WHERE salon_id = %(salon_id)s AND resource_id = %(resource_id)s AND {BLOCKED} && {blocked}
            AND status IN ('PENDING', 'CONFIRMED') AND hold_expires_at <= now()
            AND booking_id IS DISTINCT FROM %(booking_id)s::uuid
        RETURNING {_ROW}
    )"""


_HOLDS_ENDED = "(SELECT count(*) FROM expired) >= 0"
_CHANGED = f"SELECT {_ROW}, %(type)s::text AS type, %(actor)s::text AS actor, %(reason)s::text AS reason FROM booking"
_EXPIRED = f"""
    SELECT {_ROW}, 'STATUS_CHANGED'::text AS type, 'system'::text AS actor, 'HOLD_EXPIRED'::text AS reason
    FROM expired"""
_CHANGED_AND_EXPIRED = f"{_CHANGED} UNION ALL {_EXPIRED}"
_START_SECONDS = "floor(extract(epoch FROM start_ts))::bigint"
_EXPIRED_BOOKINGS = f"""
    ARRAY(SELECT booking_code FROM expired ORDER BY booking_id),
    ARRAY(SELECT {_START_SECONDS} FROM expired ORDER BY booking_id), """


def _write_history(changes: str, first_columns: str = "", returned: str = "booking") -> str:
    """Return the end of a statement, which writes the history and the feed of `changes` and returns the bookings.

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
    SELECT {first_columns}{BOOKING} FROM {returned}"""


def salon_time_lock(salon_id: str) -> str:
    """Return the name of the lock on a salon's time: shared by those who book, exclusive for time off."""
    return f"salon {salon_id} time"


def customer_locks(salon_id: str, *ids: str) -> list[str]:
    """Return the names of the locks on a customer, by phone number and user_id: who books for them is alone."""
    return [f"customer {salon_id} {each}" for each in ids if each]


def resource_lock(salon_id: str, resource_id: str) -> str:
    """Return the name of the lock on a resource's time. It is taken before any lock on a row."""
    return f"resource {salon_id} {resource_id}"


class BookedSlot(NamedTuple):
    """A Booking, encoded, whose time is now blocked, and the expired holds that ended for it.

    Of these it has the booking_code and the start, in s since 1970.
    """

    booking: bytes
    expired: list[tuple[str, int]]


class LockedBooking(NamedTuple):
    """A booking, locked until the transaction ends, whether it is an expired hold, and the salon's rules."""

    booking: Booking
    hold_expired: bool
    rules: Rules


def insert_booking(
    request: CreateBookingRequest,
    customer_phone: str,
    booking_code: str,
    resource_id: str,
    start: datetime | None,
    end: datetime | None,
) -> Statement[BookedSlot | None]:
    """Insert a booking; return it, or None if it overlaps another booking of its resource, or has no end.

    What the request leaves open comes from its service and the salon's rules.
    Raises: ForeignKeyViolation of bookings_resource_id_fkey; UniqueViolation of booking_code_salon_id.
    Source: constraint bookings_no_overlap.
    """
    status = BookingStatus.Name(request.status or BookingStatus.BOOKING_STATUS_PENDING)
    params = {
        "salon_id": request.salon_id,
        "booking_id": None,
        "code": booking_code,
        "phone": customer_phone,
        "user_id": request.customer_user_id,
        "name": request.customer_name,
        "resource_id": resource_id or None,
        "service_id": request.service_id,
        "service": request.service_name,
        "start": start,
        "end": end,
        "status": status.removeprefix("BOOKING_STATUS_"),
        "notes": request.notes,
        "hold": request.hold_duration.seconds if request.HasField("hold_duration") else None,
        "buffers": 0 if request.ignore_rules else 1,
        "type": "CREATED",
        "actor": request.actor,
        "reason": "",
    }
    return Statement(_INSERT_BOOKING, params, _read_booked_slot)


_NEW = f"""new AS (
        SELECT coalesce(%(end)s::timestamptz, %(start)s::timestamptz + v.duration * interval '1 second') AS end_ts,
            v.service_id, coalesce(nullif(%(service)s, ''), v.name, '') AS service_name,
            coalesce(v.price_micros, 0) AS price_micros, coalesce(v.currency_code, '') AS currency_code,
            %(buffers)s::int * {buffer_of("before")} AS buffer_before,
            %(buffers)s::int * {buffer_of("after")} AS buffer_after
        FROM salons AS s LEFT JOIN services AS v ON v.salon_id = s.salon_id AND v.service_id = %(service_id)s
        WHERE s.salon_id = %(salon_id)s
    )"""
_NEW_BLOCKED = "(SELECT blocked_range(%(start)s, end_ts, buffer_before, buffer_after) FROM new)"
_INSERT_BOOKING = f"""
    WITH {_NEW}, {_expire_holds(_NEW_BLOCKED)}, booking AS (
        INSERT INTO bookings (salon_id, booking_code, customer_phone, customer_user_id, customer_name, resource_id,
            service_id, service_name, price_micros, currency_code, start_ts, end_ts, buffer_before, buffer_after,
            status, notes, hold_expires_at)
        SELECT %(salon_id)s, %(code)s, %(phone)s, %(user_id)s, %(name)s, %(resource_id)s,
            service_id, service_name, price_micros, currency_code, %(start)s, end_ts, buffer_before, buffer_after,
            %(status)s, %(notes)s, now() + %(hold)s::int * interval '1 s'
        FROM new WHERE end_ts IS NOT NULL AND {_HOLDS_ENDED}
        ON CONFLICT ON CONSTRAINT bookings_no_overlap DO NOTHING
        RETURNING {_ROW}
    ){_write_history(_CHANGED_AND_EXPIRED, _EXPIRED_BOOKINGS)}"""


def _read_booked_slot(names: list[str], rows: list[Any]) -> BookedSlot | None:
    if not rows:
        return None
    return _booked_slot(names, rows[0])


def _booked_slot(names: list[str], row: Any) -> BookedSlot:
    codes, starts, *booking = row
    expired = zip(map(bytes.decode, codes), starts, strict=True)
    return BookedSlot(encode_row(Booking, names[2:], booking), list(expired))


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
    SELECT coalesce(status = 'PENDING' AND hold_expires_at <= now(), false),
        (SELECT booking_rules FROM salons WHERE salons.salon_id = bookings.salon_id), {BOOKING}
    FROM bookings WHERE booking_code = %(code)s AND salon_id = %(salon_id)s FOR UPDATE"""


def _read_locked_booking(names: list[str], rows: list[Any]) -> LockedBooking | None:
    if not rows:
        return None
    hold_expired, booking_rules, *booking = rows[0]
    return LockedBooking(
        Booking.FromString(encode_row(Booking, names[2:], booking)), hold_expired, rules_of(booking_rules)
    )


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


def change_booking(
    booking: Booking, type: str, request: RescheduleBookingRequest | UpdateBookingRequest, hold: int | None = None
) -> Statement[BookedSlot]:
    """Write the fields of a changed booking; return it. With `hold` it is a hold that expires so many s from now.

    Raises: ExclusionViolation of bookings_no_overlap if it overlaps another booking of the resource;
    ForeignKeyViolation of bookings_resource_id_fkey.
    Source: constraint bookings_no_overlap; index bookings_pkey.
    """
    params = {
        "salon_id": booking.salon_id,
        "booking_id": booking.booking_id,
        "phone": booking.customer_phone,
        "user_id": booking.customer_user_id,
        "name": booking.customer_name,
        "resource_id": booking.resource_id or None,
        "service_id": booking.service_id or None,
        "service": booking.service_name,
        "price": booking.price_micros,
        "currency": booking.currency_code,
        "start": moment(booking, "start_time"),
        "end": moment(booking, "end_time"),
        "before": booking.buffer_before.seconds,
        "after": booking.buffer_after.seconds,
        "notes": booking.notes,
        "hold": hold,
        "type": type,
        "actor": request.actor,
        "reason": request.reason,
    }
    return Statement(_CHANGE, params, lambda names, rows: _booked_slot(names, rows[0]))


_CHANGED_BLOCKED = "blocked_range(%(start)s, %(end)s, %(before)s, %(after)s)"
_CHANGE = f"""
    WITH {_expire_holds(_CHANGED_BLOCKED)}, booking AS (
        UPDATE bookings SET start_ts = %(start)s, end_ts = %(end)s, resource_id = %(resource_id)s,
            customer_phone = %(phone)s, customer_user_id = %(user_id)s, customer_name = %(name)s,
            service_id = %(service_id)s, service_name = %(service)s, price_micros = %(price)s,
            currency_code = %(currency)s, buffer_before = %(before)s, buffer_after = %(after)s, notes = %(notes)s,
            hold_expires_at = coalesce(now() + %(hold)s::int * interval '1 s', hold_expires_at),
            revision = revision + 1, updated_at = statement_timestamp()
        WHERE salon_id = %(salon_id)s AND booking_id = %(booking_id)s AND {_HOLDS_ENDED}
        RETURNING {_ROW}
    ){_write_history(_CHANGED_AND_EXPIRED, _EXPIRED_BOOKINGS)}"""


def read_conflict(
    salon_id: str, resource_id: str, start: datetime, end: datetime, buffers: tuple[int, int], booking_code: str = ""
) -> Statement[tuple[datetime, datetime] | None]:
    """Return the time of the first booking in the way of a time with its buffers, in s; None if there is none.

    `booking_code` names a booking that is in no one's way.
    Source: constraint bookings_no_overlap.
    """
    query = f"""
        SELECT (extract(epoch FROM start_ts) * 1000000)::bigint, (extract(epoch FROM end_ts) * 1000000)::bigint
        FROM bookings
        WHERE salon_id = %(salon_id)s AND resource_id = %(resource_id)s AND status IN ('PENDING', 'CONFIRMED')
            AND {BLOCKED} && {_CHANGED_BLOCKED} AND (hold_expires_at IS NULL OR hold_expires_at > now())
            AND booking_code <> %(code)s
        ORDER BY start_ts LIMIT 1"""
    params = {
        "salon_id": salon_id,
        "resource_id": resource_id,
        "start": start,
        "end": end,
        "before": buffers[0],
        "after": buffers[1],
        "code": booking_code,
    }
    return Statement(query, params, lambda _, rows: (_datetime(rows[0][0]), _datetime(rows[0][1])) if rows else None)


def _datetime(micros: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros)


async def expire_holds(conn: AsyncConnection[Any], salon_id: str) -> list[tuple[str, int]]:
    """End a salon's expired holds, up to HOLDS of them that no other transaction has locked.

    Return the booking_code of each, and its start in s since 1970.

    Source: indexes idx_bookings_holds, bookings_pkey.
    """
    query = f"""
        WITH expired AS (
            UPDATE bookings SET status = 'EXPIRED', revision = revision + 1, updated_at = statement_timestamp()
            WHERE salon_id = %(salon_id)s AND booking_id IN (
                SELECT booking_id FROM bookings
                WHERE salon_id = %(salon_id)s AND status = 'PENDING' AND hold_expires_at IS NOT NULL
                    AND hold_expires_at <= now()
                ORDER BY hold_expires_at LIMIT {HOLDS} FOR UPDATE SKIP LOCKED
            )
            RETURNING {_ROW}
        ){_write_history(_EXPIRED, f"booking_code AS code, {_START_SECONDS}, ", "expired")}"""
    cursor = await conn.execute(query.encode(), {"salon_id": salon_id})
    return [(code, start) for code, start, *_ in await cursor.fetchall()]
