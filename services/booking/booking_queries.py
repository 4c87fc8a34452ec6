"""The statements that read bookings and their history."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, Loaded, fetch_loaded, fetch_pages, text_array, unnest, where
from libs.server import Page, RpcError, given, names_given, responses
from libs.server.errors import not_found
from parlor.booking.v1.booking_pb2 import Booking, BookingEvent, ListBookingEventsResponse, ListBookingsResponse
from services.booking.salon_queries import KNOWN_SALON

BOOKING = (
    "booking_id::text, booking_code, salon_id, customer_phone, customer_name, resource_id, service_name,"
    " start_ts AS start_time, end_ts AS end_time, 'BOOKING_STATUS_' || status AS status, notes,"
    " revision, revision::text AS etag, created_at AS create_time, updated_at AS update_time,"
    " hold_expires_at AS hold_expire_time, customer_user_id, service_id, price_micros, currency_code,"
    " buffer_before, buffer_after"
)
EVENT = (
    "revision, 'BOOKING_EVENT_TYPE_' || type AS type, actor, reason,"
    " 'BOOKING_STATUS_' || from_status AS from_status, 'BOOKING_STATUS_' || to_status AS to_status,"
    " from_start_ts AS from_start_time, from_end_ts AS from_end_time,"
    " to_start_ts AS to_start_time, to_end_ts AS to_end_time, from_resource_id, to_resource_id,"
    " created_at AS create_time"
)
BOOKINGS_BY_CODE = f"""
    SELECT xmin, {BOOKING}
    FROM {SNAPSHOT_XMIN}, unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (salon, code, place)
    LEFT JOIN bookings ON booking_code = wanted.code AND salon_id = wanted.salon
    ORDER BY place"""


async def bookings_by_code(conn: AsyncConnection[Any], keys: Sequence[tuple[str, str]]) -> list[Loaded[bytes | None]]:
    """Return the booking of each (salon_id, booking_code), in the order of the keys.

    Source: report, "Unique Constraints"; index booking_code_salon_id.
    """
    salon_ids, codes = zip(*keys, strict=True)
    return await fetch_loaded(conn, Booking, BOOKINGS_BY_CODE, [text_array(salon_ids), text_array(codes)])


class BookingFilters(NamedTuple):
    """Which bookings of a salon to list, and in which order; an empty field is no filter.

    `start_time` is inclusive, `end_time` is not. `resource_ids` and `statuses` are the literals of a text[]. The
    bookings overlap the time from `overlaps_from` to `overlaps_until`.
    """

    salon_id: str
    status: str
    customer_phone: str
    start_time: datetime | None
    end_time: datetime | None
    customer_user_id: str = ""
    resource_ids: str = ""
    statuses: str = ""
    overlaps_from: datetime | None = None
    overlaps_until: datetime | None = None
    updated_since: datetime | None = None
    by_update_time: bool = False


async def list_bookings(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[BookingFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListBookingsResponse for each page, ordered by start_ts or updated_at, or SALON_NOT_FOUND.

    All pages use the same filters, with different values.
    Source: report, "Booking Indexes" 1 to 3; indexes idx_bookings_salon_start, idx_bookings_salon_status_start,
    idx_bookings_customer_salon, idx_bookings_user_salon, idx_bookings_salon_resource_start, idx_bookings_salon_range,
    idx_bookings_salon_updated.
    """
    lists = await fetch_pages(conn, Booking, bookings_statement(names_given(wanted[0])), list(map(given, wanted)))
    return responses(
        wanted,
        lists,
        ListBookingsResponse,
        "update_time" if wanted[0][0].by_update_time else "start_time",
        "booking_id",
        lambda filters: not_found("salon", filters.salon_id),
    )


@cache
def bookings_statement(names: tuple[str, ...]) -> str:
    """Return the statement that lists bookings; `names` are those of its parameters."""
    types = {
        "salon_id": "text",
        "status": "text",
        "customer_phone": "text",
        "start_time": "timestamptz",
        "end_time": "timestamptz",
        "customer_user_id": "text",
        "resource_ids": "text",
        "statuses": "text",
        "overlaps_from": "timestamptz",
        "overlaps_until": "timestamptz",
        "updated_since": "timestamptz",
        "by_update_time": "bool",
        "rows": "int",
        "after": "bigint",
        "id": "uuid",
    }
    return f"""
        SELECT xmin, place, page.*
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}, {KNOWN_SALON}
        LEFT JOIN LATERAL ({_page_of_bookings(names)}) AS page ON true"""


def _page_of_bookings(names: tuple[str, ...]) -> str:
    """Return the query of one page.

    Of several resources, or statuses, it takes a page each and merges them: an index has the order within each. What
    changed since a time is few rows, but in the order of start_ts Postgres would read all of the salon's for them: it
    takes them first.
    """
    time, each = ("updated_at", "") if "by_update_time" in names else ("start_ts", _merged(names))
    conditions = {
        "salon_id": "salon_id = wanted.salon_id",
        "status": "status = wanted.status",
        "customer_phone": "customer_phone = wanted.customer_phone",
        "start_time": "start_ts >= wanted.start_time",
        "end_time": "start_ts < wanted.end_time",
        "customer_user_id": "customer_user_id = wanted.customer_user_id AND customer_user_id <> ''",
        "resource_ids": "resource_id = ANY (wanted.resource_ids::text[])",
        "statuses": "status = ANY (wanted.statuses::text[])",
        "overlaps_from": "tstzrange(start_ts, end_ts) && tstzrange(wanted.overlaps_from, wanted.overlaps_until)",
        "updated_since": "updated_at >= wanted.updated_since",
        "after": f"({time}, booking_id) > (timestamptz 'epoch' + wanted.after * interval '1 us', wanted.id)",
    }
    order = f"ORDER BY {time}, bookings.booking_id LIMIT wanted.rows"
    if "updated_since" in names and time == "start_ts":
        changed = where(conditions, [name for name in names if name != "after"])
        rest = f"WHERE {conditions['after']}" if "after" in names else ""
        return f"SELECT {BOOKING} FROM (SELECT * FROM bookings WHERE {changed} OFFSET 0) AS bookings {rest} {order}"
    if each:
        conditions[each] = f"{_COLUMNS[each]} = each.value"
    bookings = f"SELECT {BOOKING} FROM bookings WHERE {where(conditions, names)}"
    if each:
        merged = "ORDER BY page.start_time, page.booking_id LIMIT wanted.rows"
        values = f"unnest(wanted.{each}::text[]) AS each (value)"
        return f"SELECT page.* FROM {values}, LATERAL ({bookings} {order}) AS page {merged}"
    return f"{bookings} {order}"


_COLUMNS = {"resource_ids": "resource_id", "statuses": "status"}


def _merged(names: tuple[str, ...]) -> str:
    """Return the filter whose values have a page each, "" for none: others find few rows."""
    if {"customer_phone", "customer_user_id", "overlaps_from", "updated_since"}.isdisjoint(names):
        return next((name for name in _COLUMNS if name in names), "")
    return ""


class EventFilters(NamedTuple):
    """The booking whose events to list."""

    salon_id: str
    booking_code: str


async def list_booking_events(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[EventFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListBookingEventsResponse for each page, oldest first; BOOKING_NOT_FOUND for an unknown booking.

    Either all are first pages, or none is.
    Source: indexes booking_code_salon_id, booking_events_pkey.
    """
    query = events_statement(names_given(wanted[0]))
    lists = await fetch_pages(conn, BookingEvent, query, list(map(given, wanted)))
    return responses(
        wanted,
        lists,
        ListBookingEventsResponse,
        "revision",
        "booking_code",
        lambda filters: not_found("booking", f"{filters.salon_id}/{filters.booking_code}"),
    )


@cache
def events_statement(names: tuple[str, ...]) -> str:
    """Return the statement that lists the events of bookings; `names` are those of its parameters."""
    types = {"salon_id": "text", "booking_code": "text", "rows": "int", "after": "bigint", "id": "text"}
    conditions = {
        "salon_id": "e.salon_id = b.salon_id",
        "booking_code": "e.booking_id = b.booking_id",
        "after": "e.revision > wanted.after",
    }
    return f"""
        SELECT xmin, place, page.*
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}, LATERAL (
            SELECT salon_id, booking_id, booking_code FROM bookings
            WHERE booking_code = wanted.booking_code AND salon_id = wanted.salon_id LIMIT 1
        ) AS b
        LEFT JOIN LATERAL (
            SELECT b.booking_code, {EVENT} FROM booking_events AS e WHERE {where(conditions, names)}
            ORDER BY e.revision LIMIT wanted.rows
        ) AS page ON true"""
