"""The statements about resources, one function each."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection

from libs.db import STAMP, Loaded, fetch_one, fetch_page, fetch_returned, fetch_rows
from libs.rpc import Page
from parlor.booking.v1.booking_pb2 import Resource, UpsertResourceRequest
from services.booking.salon_queries import as_json

RESOURCE = (
    "resource_id, salon_id, name, active, working_hours, special_hours,"
    " revision::text AS etag, created_at AS create_time, updated_at AS update_time"
)


async def lock_resource(conn: AsyncConnection[Any], salon_id: str, resource_id: str) -> Resource | None:
    """Return a resource, locked until the transaction ends; bookings of it go on."""
    query = f"SELECT {RESOURCE} FROM resources WHERE salon_id = %s AND resource_id = %s FOR NO KEY UPDATE"
    return await fetch_one(conn, Resource, query, (salon_id, resource_id))


async def upsert_resource(conn: AsyncConnection[Any], request: UpsertResourceRequest) -> Resource:
    """Insert or replace a resource; return it as it is now.

    Raises: ForeignKeyViolation of resources_salon_id_fkey.
    """
    query = f"""
        INSERT INTO resources AS r (salon_id, resource_id, name, active, working_hours, special_hours)
        VALUES (%s, %s, %s, %s, %s, %s)
        ON CONFLICT ON CONSTRAINT resources_pkey DO UPDATE SET
            name = excluded.name, active = excluded.active, working_hours = excluded.working_hours,
            special_hours = excluded.special_hours, revision = r.revision + 1, updated_at = statement_timestamp()
        RETURNING {RESOURCE}"""
    active = request.active if request.HasField("active") else True
    hours = (as_json(request.working_hours), as_json(request.special_hours))
    return await fetch_returned(
        conn, Resource, query, (request.salon_id, request.resource_id, request.name, active, *hours)
    )


async def list_resources(
    conn: AsyncConnection[Any], salon_id: str, active_only: bool, page: Page
) -> Loaded[list[bytes]]:
    """Return up to one resource more than the page has, ordered by resource_id.

    Raises: LookupError if there is no such salon.
    Source: index resources_pkey.
    """
    query = f"""
        SELECT stamp, page.*
        FROM {STAMP} JOIN salons AS s ON s.salon_id = %(salon_id)s
        LEFT JOIN LATERAL (
            SELECT {RESOURCE} FROM resources
            WHERE salon_id = %(salon_id)s AND resource_id > %(after)s{" AND active" if active_only else ""}
            ORDER BY resources.resource_id LIMIT %(limit)s
        ) AS page ON true"""
    params = {"salon_id": salon_id, "after": page.after_id or "", "limit": page.size + 1}
    return await fetch_page(conn, Resource, query, params)


async def availability(
    conn: AsyncConnection[Any], salon_id: str, resource_ids: Sequence[str], start: int, end: int
) -> list[Any]:
    """Return what decides when resources are free from `start` to `end`, in s since 1970; nothing for no such salon.

    Shape:  the salon: NULL, its time zone, opening hours, special hours, NULL, NULL; and each of the resources, or of
            the active ones if none is named: its id, NULL unless it is active, working hours, special hours, and the
            starts and ends of when bookings block it, in order and apart, in whole s.
    Source: indexes salons_pkey, resources_pkey; constraint bookings_no_overlap.
    """
    named = " AND resource_id = ANY(%(resource_ids)s)" if resource_ids else ""
    query = f"""
        SELECT NULL AS resource_id, time_zone, opening_hours, special_hours,
            NULL::bigint[] AS starts, NULL::bigint[] AS ends
        FROM salons WHERE salon_id = %(salon_id)s
        UNION ALL
        SELECT resource_id, CASE WHEN active THEN '' END, working_hours, special_hours, starts, ends
        FROM resources LEFT JOIN (
            SELECT resource_id,
                array_agg(lower(busy) ORDER BY busy) AS starts, array_agg(upper(busy) ORDER BY busy) AS ends
            FROM (
                SELECT resource_id, unnest(range_agg(int8range(
                    floor(extract(epoch FROM start_ts))::bigint, ceil(extract(epoch FROM end_ts))::bigint))) AS busy
                FROM bookings
                WHERE salon_id = %(salon_id)s{named or " AND resource_id IS NOT NULL"}
                    AND status IN ('PENDING', 'CONFIRMED')
                    AND tstzrange(start_ts, end_ts) && tstzrange(to_timestamp(%(start)s), to_timestamp(%(end)s))
                    AND (hold_expires_at IS NULL OR hold_expires_at > now())
                GROUP BY resource_id
            ) AS merged
            GROUP BY resource_id
        ) AS busy USING (resource_id)
        WHERE salon_id = %(salon_id)s{named or " AND active"}"""
    params = {"salon_id": salon_id, "resource_ids": list(resource_ids), "start": start, "end": end}
    _, rows = await fetch_rows(conn, query, params)
    return rows
