"""The statements that read and write salons."""

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from psycopg import AsyncConnection, errors
from psycopg.types.json import Jsonb

from libs.messages import SNAPSHOT_XMIN, Loaded, fetch_encoded, fetch_loaded, fetch_one, fetch_returned, text_array
from libs.server import Page
from libs.server.errors import invalid_fields
from parlor.booking.v1.booking_pb2 import BookingRules, Salon

SALON = (
    "salon_id, phone_number_id, name, time_zone, region_code, opening_hours, special_hours, language_code,"
    " booking_rules, revision::text AS etag, created_at AS create_time, updated_at AS update_time"
)
SALONS_BY_ID = f"""
    SELECT xmin, {SALON}
    FROM {SNAPSHOT_XMIN}, unnest($1::text[]) WITH ORDINALITY AS wanted (id, place)
    LEFT JOIN salons ON salon_id = wanted.id
    ORDER BY place"""
SALONS_BY_PHONE_NUMBER_ID = f"""
    SELECT xmin, {SALON}
    FROM {SNAPSHOT_XMIN}, unnest($1::text[]) WITH ORDINALITY AS wanted (id, place)
    LEFT JOIN salons ON phone_number_id = wanted.id
    ORDER BY place"""

# Drops the rows of `wanted` whose salon does not exist. LIMIT makes Postgres use salons_pkey for each: a plain join may
# scan all salons, since the planner does not know how few rows `wanted` has.
KNOWN_SALON = "LATERAL (SELECT FROM salons WHERE salon_id = wanted.salon_id LIMIT 1) AS salon"


async def salons_by_id(conn: AsyncConnection[Any], salon_ids: Sequence[str]) -> list[Loaded[bytes | None]]:
    """Return the salon of each id, in the order of the ids.

    Source: index salons_pkey.
    """
    return await fetch_loaded(conn, Salon, SALONS_BY_ID, [text_array(salon_ids)])


async def salons_by_phone_number_id(
    conn: AsyncConnection[Any], phone_number_ids: Sequence[str]
) -> list[Loaded[bytes | None]]:
    """Return the salon of each WhatsApp phone_number_id, in the order of the ids.

    Source: index salons_phone_number_id_key.
    """
    return await fetch_loaded(conn, Salon, SALONS_BY_PHONE_NUMBER_ID, [text_array(phone_number_ids)])


async def list_salons(conn: AsyncConnection[Any], page: Page) -> list[bytes]:
    """Return a page of salons ordered by salon_id, and one salon more if there is a next page.

    Source: index salons_pkey.
    """
    query = f"SELECT {SALON} FROM salons WHERE salon_id > %s ORDER BY salon_id LIMIT %s"
    return await fetch_encoded(conn, Salon, query, (page.after_id or "", page.size + 1))


async def lock_salon(conn: AsyncConnection[Any], salon_id: str) -> Salon | None:
    """Return a salon, locked until the transaction ends."""
    return await fetch_one(conn, Salon, f"SELECT {SALON} FROM salons WHERE salon_id = %s FOR UPDATE", [salon_id])


async def upsert_salon(conn: AsyncConnection[Any], salon: Salon) -> Salon:
    """Insert or replace a salon, with a row of the feed; return it.

    Raises: UniqueViolation of salons_phone_number_id_key; INVALID_FIELD for a time zone unknown to Postgres.
    """
    query = f"""
        WITH salon AS (
            INSERT INTO salons AS s (salon_id, phone_number_id, name, time_zone, region_code, opening_hours,
                special_hours, language_code, booking_rules)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (salon_id) DO UPDATE SET
                phone_number_id = excluded.phone_number_id, name = excluded.name, time_zone = excluded.time_zone,
                region_code = excluded.region_code, opening_hours = excluded.opening_hours,
                special_hours = excluded.special_hours, language_code = excluded.language_code,
                booking_rules = excluded.booking_rules, revision = s.revision + 1, updated_at = statement_timestamp()
            RETURNING {SALON}
        ), change AS (
            INSERT INTO booking_changes (salon_id, type) SELECT salon_id, 'SALON' FROM salon
        )
        SELECT * FROM salon"""
    names = (salon.salon_id, salon.phone_number_id, salon.name, salon.time_zone, salon.region_code)
    hours = as_json(salon.opening_hours), as_json(salon.special_hours)
    rules = _rules_json(salon.booking_rules) if salon.HasField("booking_rules") else None
    row = (*names, *hours, salon.language_code, rules)
    try:
        return await fetch_returned(conn, Salon, query, row)
    except errors.InvalidParameterValue as error:
        raise invalid_fields([("salon.time_zone", "is not known to the database")]) from error


def as_json(hours: Iterable[Message]) -> Jsonb:
    """Return hours as JSON, with the proto's field names, for a jsonb column."""
    return Jsonb([MessageToDict(stretch, preserving_proto_field_name=True) for stretch in hours])


def _rules_json(rules: BookingRules) -> Jsonb:
    """Return rules as JSON that the message can be made from: a Duration as `{"seconds": N}`."""
    return Jsonb(
        {
            field.name: value if isinstance(value, bool) else {"seconds": value.seconds}
            for field, value in rules.ListFields()
        }
    )
