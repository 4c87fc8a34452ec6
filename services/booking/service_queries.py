"""The statements that read and write services: what a salon does for customers."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import (
    SNAPSHOT_XMIN,
    Loaded,
    encode_row,
    fetch_loaded,
    fetch_pages,
    fetch_returned,
    text_array,
    unnest,
    where,
)
from libs.server import Page, RpcError, given, names_given, responses, whole_seconds
from libs.server.errors import not_found
from parlor.booking.v1.booking_pb2 import ListServicesResponse, Service, UpsertServiceRequest
from services.booking.salon_queries import KNOWN_SALON

_ROW = (
    "salon_id, service_id, name, duration, buffer_before, buffer_after, price_micros, currency_code, resource_ids,"
    " active, revision, created_at, updated_at"
)
SERVICE = (
    "service_id, salon_id, name, duration, buffer_before, buffer_after, price_micros, currency_code, resource_ids,"
    " active, revision::text AS etag, created_at AS create_time, updated_at AS update_time"
)
SERVICES_BY_ID = f"""
    SELECT xmin, {SERVICE}
    FROM {SNAPSHOT_XMIN}, unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (salon, service, place)
    LEFT JOIN services ON salon_id = wanted.salon AND service_id = wanted.service
    ORDER BY place"""


def service_lock(salon_id: str, service_id: str) -> str:
    """Return the name of the lock on a service, which its writers take."""
    return f"service {salon_id} {service_id}"


async def services_by_id(conn: AsyncConnection[Any], keys: Sequence[tuple[str, str]]) -> list[Loaded[bytes | None]]:
    """Return the service of each (salon_id, service_id), in the order of the keys.

    Source: index services_pkey.
    """
    salon_ids, service_ids = zip(*keys, strict=True)
    return await fetch_loaded(conn, Service, SERVICES_BY_ID, [text_array(salon_ids), text_array(service_ids)])


def read_service(salon_id: str, service_id: str) -> Statement[Service | None]:
    """Return a service as it is now, None if there is no such service; its writers hold `service_lock`."""
    query = f"SELECT {SERVICE} FROM services WHERE salon_id = %(salon_id)s AND service_id = %(service_id)s"
    return Statement(query, {"salon_id": salon_id, "service_id": service_id}, _read_service)


def _read_service(names: list[str], rows: list[Any]) -> Service | None:
    return Service.FromString(encode_row(Service, names, rows[0])) if rows else None


async def upsert_service(conn: AsyncConnection[Any], request: UpsertServiceRequest) -> Service:
    """Insert or replace a service; return it.

    Raises: ForeignKeyViolation of services_salon_id_fkey; INVALID_FIELD for fractions of a second.
    """
    query = f"""
        WITH service AS (
            INSERT INTO services AS s (salon_id, service_id, name, duration, buffer_before, buffer_after, price_micros,
                currency_code, resource_ids, active)
            VALUES (%(salon_id)s, %(service_id)s, %(name)s, %(duration)s, %(buffer_before)s, %(buffer_after)s,
                %(price_micros)s, %(currency_code)s, %(resource_ids)s, %(active)s)
            ON CONFLICT ON CONSTRAINT services_pkey DO UPDATE SET
                name = excluded.name, duration = excluded.duration, buffer_before = excluded.buffer_before,
                buffer_after = excluded.buffer_after, price_micros = excluded.price_micros,
                currency_code = excluded.currency_code, resource_ids = excluded.resource_ids, active = excluded.active,
                revision = s.revision + 1, updated_at = statement_timestamp()
            RETURNING {_ROW}
        ), changes AS (
            INSERT INTO booking_changes (salon_id, type, service_id)
            SELECT salon_id, 'SERVICE', service_id FROM service
        )
        SELECT {SERVICE} FROM service"""
    params = {
        "salon_id": request.salon_id,
        "service_id": request.service_id,
        "name": request.name,
        **{field: whole_seconds(request, field) for field in ("duration", "buffer_before", "buffer_after")},
        "price_micros": request.price_micros,
        "currency_code": request.currency_code,
        "resource_ids": text_array(dict.fromkeys(request.resource_ids)),
        "active": request.active if request.HasField("active") else True,
    }
    return await fetch_returned(conn, Service, query, params)


async def delete_service(conn: AsyncConnection[Any], salon_id: str, service_id: str) -> None:
    """Delete a service.

    Source: index services_pkey.
    """
    query = """
        WITH service AS (
            DELETE FROM services WHERE salon_id = %s AND service_id = %s RETURNING salon_id, service_id
        )
        INSERT INTO booking_changes (salon_id, type, service_id) SELECT salon_id, 'SERVICE', service_id FROM service"""
    await conn.execute(query, (salon_id, service_id))


class ServiceFilters(NamedTuple):
    """Which services of a salon to list."""

    salon_id: str
    active_only: bool


async def list_services(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[ServiceFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListServicesResponse for each page, ordered by service_id; SALON_NOT_FOUND for an unknown salon.

    All pages use the same filters, with different values.
    Source: index services_pkey.
    """
    query = services_statement(names_given(wanted[0]))
    lists = await fetch_pages(conn, Service, query, list(map(given, wanted)))
    return responses(
        wanted,
        lists,
        ListServicesResponse,
        "create_time",
        "service_id",
        lambda filters: not_found("salon", filters.salon_id),
    )


@cache
def services_statement(names: tuple[str, ...]) -> str:
    """Return the statement that lists services; `names` are those of its parameters."""
    types = {"salon_id": "text", "active_only": "bool", "rows": "int", "after": "bigint", "id": "text"}
    conditions = {
        "salon_id": "salon_id = wanted.salon_id",
        "active_only": "active",
        "after": "service_id > wanted.id",
    }
    return f"""
        SELECT xmin, place, page.*
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}, {KNOWN_SALON}
        LEFT JOIN LATERAL (
            SELECT {SERVICE} FROM services WHERE {where(conditions, names)}
            ORDER BY services.service_id LIMIT wanted.rows
        ) AS page ON true"""
