"""The statements that read and write resources, and what availability depends on."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.messages import SNAPSHOT_XMIN, Loaded, fetch_one, fetch_pages, fetch_returned, fetch_rows, unnest, where
from libs.server import Page, RpcError, given, names_given, responses
from libs.server.errors import not_found
from parlor.booking.v1.booking_pb2 import ListResourcesResponse, Resource, UpsertResourceRequest
from services.booking.salon_queries import KNOWN_SALON, as_json

RESOURCE = (
    "resource_id, salon_id, name, active, working_hours, special_hours,"
    " revision::text AS etag, created_at AS create_time, updated_at AS update_time"
)


async def lock_resource(conn: AsyncConnection[Any], salon_id: str, resource_id: str) -> Resource | None:
    """Return a resource, locked until the transaction ends. The lock does not stop bookings of the resource."""
    query = f"SELECT {RESOURCE} FROM resources WHERE salon_id = %s AND resource_id = %s FOR NO KEY UPDATE"
    return await fetch_one(conn, Resource, query, (salon_id, resource_id))


async def upsert_resource(conn: AsyncConnection[Any], request: UpsertResourceRequest) -> Resource:
    """Insert or replace a resource, with a row of the feed; return it.

    Raises: ForeignKeyViolation of resources_salon_id_fkey.
    """
    query = f"""
        WITH resource AS (
            INSERT INTO resources AS r (salon_id, resource_id, name, active, working_hours, special_hours)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT ON CONSTRAINT resources_pkey DO UPDATE SET
                name = excluded.name, active = excluded.active, working_hours = excluded.working_hours,
                special_hours = excluded.special_hours, revision = r.revision + 1, updated_at = statement_timestamp()
            RETURNING {RESOURCE}
        ), change AS (
            INSERT INTO booking_changes (salon_id, type, resource_id)
            SELECT salon_id, 'RESOURCE', resource_id FROM resource
        )
        SELECT * FROM resource"""
    active = request.active if request.HasField("active") else True
    hours = (as_json(request.working_hours), as_json(request.special_hours))
    return await fetch_returned(
        conn, Resource, query, (request.salon_id, request.resource_id, request.name, active, *hours)
    )


class ResourceFilters(NamedTuple):
    """Which resources of a salon to list."""

    salon_id: str
    active_only: bool


async def list_resources(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[ResourceFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListResourcesResponse for each page, ordered by resource_id; SALON_NOT_FOUND for an unknown salon.

    All pages use the same filters, with different values.
    Source: index resources_pkey.
    """
    query = resources_statement(names_given(wanted[0]))
    lists = await fetch_pages(conn, Resource, query, list(map(given, wanted)))
    return responses(
        wanted,
        lists,
        ListResourcesResponse,
        "create_time",
        "resource_id",
        lambda filters: not_found("salon", filters.salon_id),
    )


@cache
def resources_statement(names: tuple[str, ...]) -> str:
    """Return the statement that lists resources; `names` are those of its parameters."""
    types = {"salon_id": "text", "active_only": "bool", "rows": "int", "after": "bigint", "id": "text"}
    conditions = {
        "salon_id": "salon_id = wanted.salon_id",
        "active_only": "active",
        "after": "resource_id > wanted.id",
    }
    return f"""
        SELECT xmin, place, page.*
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}, {KNOWN_SALON}
        LEFT JOIN LATERAL (
            SELECT {RESOURCE} FROM resources WHERE {where(conditions, names)}
            ORDER BY resources.resource_id LIMIT wanted.rows
        ) AS page ON true"""


async def availability(
    conn: AsyncConnection[Any], salon_id: str, resource_ids: Sequence[str], start: int, end: int
) -> list[Any]:
    """Return the hours and the blocked times of resources from `start` to `end`; no row for an unknown salon.

    Shape:  a row of the salon: NULL, its time zone, opening hours, special hours, NULL, NULL; and a row for each of
            `resource_ids`, or for each active resource if there are none: its id, NULL unless it is active, working
            hours, special hours, and the starts and ends of the times that bookings block, merged and sorted.
    Units:  times in whole s since 1970.
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
