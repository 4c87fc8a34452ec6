"""The statements that remove a customer from their bookings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import fetch_returned, fetch_rows
from parlor.booking.v1.booking_pb2 import Booking, EraseCustomerResponse
from services.phones import parts


class Customer(NamedTuple):
    """A customer of a salon: their phone number, as it may be stored, and their user_id; one of them may be missing."""

    salon_id: str
    phone_numbers: list[str]
    user_id: str


class BookingOfCustomer(NamedTuple):
    """A booking of a customer, its start in s since 1970, and the resource whose time it blocks, if any."""

    booking_id: str
    booking_code: str
    start: int
    resource_id: str | None
    customer_phone: str
    customer_user_id: str


_OF_CUSTOMER = """salon_id = %(salon_id)s AND (
            customer_phone = ANY (%(phone_numbers)s) OR customer_user_id = %(user_id)s AND customer_user_id <> ''
        )"""


async def resources_of_customer(conn: AsyncConnection[Any], customer: Customer) -> list[str]:
    """Return the resources whose time a customer's bookings block.

    Source: indexes idx_bookings_customer_salon, idx_bookings_user_salon.
    """
    query = f"""
        SELECT DISTINCT resource_id FROM bookings
        WHERE {_OF_CUSTOMER} AND resource_id IS NOT NULL AND status IN ('PENDING', 'CONFIRMED')"""
    _, rows = await fetch_rows(conn, query, customer._asdict())
    return [row[0] for row in rows]


async def lock_bookings_of_customer(conn: AsyncConnection[Any], customer: Customer) -> list[BookingOfCustomer]:
    """Lock a customer's bookings until the transaction ends; return them.

    Source: indexes idx_bookings_customer_salon, idx_bookings_user_salon.
    """
    query = f"""
        SELECT booking_id::text, booking_code, floor(extract(epoch FROM start_ts))::bigint,
            CASE WHEN status IN ('PENDING', 'CONFIRMED') THEN resource_id END, customer_phone, customer_user_id
        FROM bookings WHERE {_OF_CUSTOMER} ORDER BY bookings.booking_id FOR UPDATE"""
    _, rows = await fetch_rows(conn, query, customer._asdict())
    return [BookingOfCustomer(*row) for row in rows]


async def erase_customer(
    conn: AsyncConnection[Any], customer: Customer, bookings: Sequence[BookingOfCustomer]
) -> EraseCustomerResponse:
    """Remove a customer from their locked bookings, the history of these, and kept replies; return how many bookings.

    The bookings must be locked by an earlier statement: this one's snapshot then has all their history.
    A kept reply is the customer's if it contains the bytes of a customer_phone or customer_user_id field with their
    name, or of the booking_id field of such a booking. An actor is emptied if it contains the user_id, or its digits
    those of the number.
    Source: indexes bookings_pkey, booking_events_pkey, booking_requests_pkey.
    """
    query = """
        WITH booking AS (
            UPDATE bookings SET customer_phone = '', customer_user_id = '', customer_name = '', notes = '',
                revision = revision + 1, updated_at = statement_timestamp()
            FROM unnest(%(booking_ids)s::uuid[]) AS id
            WHERE salon_id = %(salon_id)s AND booking_id = id
            RETURNING salon_id, booking_id, booking_code, revision
        ), history AS (
            UPDATE booking_events AS e
            SET reason = CASE WHEN e.reason = 'HOLD_EXPIRED' THEN e.reason ELSE '' END,
                actor = CASE WHEN EXISTS (
                    SELECT FROM unnest(%(digits)s::text[]) AS digits
                    WHERE position(digits IN regexp_replace(e.actor, '[^0-9]', '', 'g')) > 0
                ) OR EXISTS (
                    SELECT FROM unnest(%(user_ids)s::text[]) AS user_id WHERE position(lower(user_id) IN e.actor) > 0
                ) THEN '' ELSE e.actor END
            FROM booking AS b WHERE e.salon_id = b.salon_id AND e.booking_id = b.booking_id
        ), replies AS (
            UPDATE booking_requests SET reply = ''
            WHERE salon_id = %(salon_id)s
                AND EXISTS (SELECT FROM unnest(%(fields)s::bytea[]) AS field WHERE position(field IN reply) > 0)
        ), changes AS (
            INSERT INTO booking_changes (salon_id, type, booking_code, revision)
            SELECT salon_id, 'UPDATED', booking_code, revision FROM booking
        )
        SELECT count(*)::int AS bookings FROM booking"""
    phone_numbers = {*customer.phone_numbers, *(booking.customer_phone for booking in bookings)} - {""}
    user_ids = {customer.user_id, *(booking.customer_user_id for booking in bookings)} - {""}
    named = [Booking(customer_phone=phone_number) for phone_number in customer.phone_numbers]
    named += [Booking(customer_user_id=user_id) for user_id in filter(None, [customer.user_id])]
    named += [Booking(booking_id=booking.booking_id) for booking in bookings]
    params = {
        "salon_id": customer.salon_id,
        "booking_ids": [booking.booking_id for booking in bookings],
        "digits": [parts(phone_number)[1] for phone_number in phone_numbers],
        "user_ids": list(user_ids),
        "fields": [booking.SerializeToString() for booking in named],
    }
    return await fetch_returned(conn, EraseCustomerResponse, query, params)
