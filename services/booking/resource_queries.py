"""The statements that read and write resources."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import (
    SNAPSHOT_XMIN,
    Loaded,
    fetch_one,
    fetch_pages,
    fetch_returned,
    fetch_rows,
    text_array,
    unnest,
    where,
)
from libs.server import Page, RpcError, given, names_given, responses
from libs.server.errors import not_found
from parlor.booking.v1.booking_pb2 import ListResourcesResponse, Resource, UpsertResourceRequest
from services.booking.salon_queries import KNOWN_SALON, as_json

RESOURCE = (
    "resource_id, salon_id, name, active, working_hours, special_hours,"
    " revision::text AS etag, created_at AS create_time, updated_at AS update_time"
)


_ROW = "salon_id, resource_id, name, active, working_hours, special_hours, revision, created_at, updated_at"
_CHANGES = """changes AS (
            INSERT INTO booking_changes (salon_id, type, resource_id)
            SELECT salon_id, 'RESOURCE', resource_id FROM changed
        )"""


async def lock_resource(conn: AsyncConnection[Any], salon_id: str, resource_id: str) -> Resource | None:
    """Return a resource, locked until the transaction ends. The lock does not stop bookings of the resource."""
    query = f"""
        SELECT {RESOURCE} FROM resources WHERE salon_id = %s AND resource_id = %s AND deleted_at IS NULL
        FOR NO KEY UPDATE"""
    return await fetch_one(conn, Resource, query, (salon_id, resource_id))


async def upsert_resource(conn: AsyncConnection[Any], request: UpsertResourceRequest) -> Resource:
    """Insert or replace a resource; return it. One that was deleted is created again, with its next revision.

    Raises: ForeignKeyViolation of resources_salon_id_fkey.
    """
    query = f"""
        WITH changed AS (
            INSERT INTO resources AS r (salon_id, resource_id, name, active, working_hours, special_hours)
            VALUES (%s, %s, %s, %s, %s, %s)
            ON CONFLICT ON CONSTRAINT resources_pkey DO UPDATE SET
                name = excluded.name, active = excluded.active, working_hours = excluded.working_hours,
                special_hours = excluded.special_hours, revision = r.revision + 1, deleted_at = NULL,
                created_at = CASE WHEN r.deleted_at IS NULL THEN r.created_at ELSE statement_timestamp() END,
                updated_at = statement_timestamp()
            RETURNING {_ROW}
        ), {_CHANGES}
        SELECT {RESOURCE} FROM changed"""
    active = request.active if request.HasField("active") else True
    hours = (as_json(request.working_hours), as_json(request.special_hours))
    return await fetch_returned(
        conn, Resource, query, (request.salon_id, request.resource_id, request.name, active, *hours)
    )


async def next_booking(conn: AsyncConnection[Any], salon_id: str, resource_id: str) -> str | None:
    """Return the code of the first booking that blocks a resource and has not ended, None if there is none.

    Source: constraint bookings_no_overlap.
    """
    query = """
        SELECT booking_code FROM bookings
        WHERE salon_id = %s AND resource_id = %s AND status IN ('PENDING', 'CONFIRMED') AND end_ts > now()
            AND blocked_range(start_ts, end_ts, buffer_before, buffer_after) && tstzrange(now(), NULL)
            AND (hold_expires_at IS NULL OR hold_expires_at > now())
        ORDER BY start_ts LIMIT 1"""
    _, rows = await fetch_rows(conn, query, (salon_id, resource_id))
    return rows[0][0] if rows else None


async def delete_resource(conn: AsyncConnection[Any], salon_id: str, resource_id: str) -> None:
    """Delete a resource. Its row stays: bookings and time off refer to it.

    Source: index resources_pkey.
    """
    query = f"""
        WITH changed AS (
            UPDATE resources SET deleted_at = statement_timestamp(), updated_at = statement_timestamp()
            WHERE salon_id = %s AND resource_id = %s RETURNING salon_id, resource_id
        ), {_CHANGES}
        SELECT count(*) FROM changed"""
    await fetch_rows(conn, query, (salon_id, resource_id))


def missing_resources(salon_id: str, resource_ids: Iterable[str]) -> Statement[list[str]]:
    """Return those of `resource_ids` that the salon does not have.

    Source: index resources_pkey.
    """
    query = """
        SELECT wanted FROM unnest(%(resource_ids)s::text[]) AS wanted
        WHERE NOT EXISTS (
            SELECT FROM resources WHERE salon_id = %(salon_id)s AND resource_id = wanted AND deleted_at IS NULL
        )"""
    params = {"salon_id": salon_id, "resource_ids": text_array(resource_ids)}
    return Statement(query, params, lambda _, rows: [row[0].decode() for row in rows])


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
            SELECT {RESOURCE} FROM resources WHERE {where(conditions, names)} AND deleted_at IS NULL
            ORDER BY resources.resource_id LIMIT wanted.rows
        ) AS page ON true"""
