"""The WhatsApp ids of erased messages. Only their salted hashes are kept (migration 0020, decision 0051)."""

import secrets
from typing import Any

from psycopg import AsyncConnection

from libs.server import RpcError, errors

# The pattern of whatsapp_ids in the JSON of a webhook item, as SQL.
WAMIDS = r"""'"(wamid\.[^"\\]{1,250})"'"""
HASH = "sha256(s.salt || convert_to({}, 'UTF8'))"


def is_erased(salon_id: str, whatsapp_id: str) -> str:
    """Return the SQL that is true if a whatsapp_id is that of an erased message; both are SQL expressions.

    Which archived messages are those of an erased customer is known once the files obey the erasure; until then it is
    true for all archived messages of the salon.
    As a scalar subquery, so that the planner can't join all hashes with all rows. A salon without erasures costs one
    look into an index.
    Source: indexes erasure_salts_pkey, erased_whatsapp_ids_pkey, message_erasures_salon, message_names_pkey,
    whatsapp_id.
    """
    return f"""coalesce((
            SELECT EXISTS (
                SELECT FROM erased_whatsapp_ids AS e
                WHERE e.salon_id = s.salon_id AND e.hash = {HASH.format(whatsapp_id)}
            ) OR EXISTS (SELECT FROM message_erasures AS o WHERE o.salon_id = s.salon_id) AND EXISTS (
                SELECT FROM message_names AS n
                WHERE n.salon_id = s.salon_id AND n.name = message_name({whatsapp_id})
            ) AND NOT EXISTS (
                SELECT FROM messages AS kept WHERE kept.salon_id = s.salon_id AND kept.whatsapp_id = {whatsapp_id}
            ) FROM erasure_salts AS s WHERE s.salon_id = {salon_id}
        ), false)"""  # noqa: S608 - SQL of our code


def hash_ids(rows: str) -> str:
    """Return the statement that keeps the hashes of the whatsapp_ids that a FROM item has; see `add_salt`."""
    return f"""
        INSERT INTO erased_whatsapp_ids (salon_id, hash)
        SELECT DISTINCT s.salon_id, {HASH.format("whatsapp_id")}
        FROM erasure_salts AS s, {rows} WHERE s.salon_id = %(salon_id)s AND whatsapp_id IS NOT NULL
        ON CONFLICT ON CONSTRAINT erased_whatsapp_ids_pkey DO NOTHING"""  # noqa: S608 - SQL of our code


async def add_salt(conn: AsyncConnection[Any], salon_id: str) -> None:
    """Give a salon a salt, unless it has one."""
    query = b"""
        INSERT INTO erasure_salts (salon_id, salt) VALUES (%s, %s)
        ON CONFLICT ON CONSTRAINT erasure_salts_pkey DO NOTHING"""
    await conn.execute(query, (salon_id, secrets.token_bytes(32)))


async def keep_hash(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> None:
    """Keep the hash of a whatsapp_id that an erased message gets now. The salon has a salt, since it was erased."""
    query = hash_ids("(SELECT %(whatsapp_id)s::text AS whatsapp_id) AS known")
    await conn.execute(query.encode(), {"salon_id": salon_id, "whatsapp_id": whatsapp_id})


async def refuse_erased(conn: AsyncConnection[Any], salon_id: str, whatsapp_id: str) -> None:
    """Raise: CUSTOMER_ERASED if a whatsapp_id is that of an erased message."""
    query = f"SELECT {is_erased('%(salon_id)s', '%(whatsapp_id)s')}"
    found = await (await conn.execute(query.encode(), {"salon_id": salon_id, "whatsapp_id": whatsapp_id})).fetchone()
    if found and found[0]:
        raise customer_erased(f"{salon_id}/whatsapp_id")


def customer_erased(name: str) -> RpcError:
    """Return the error for a message of an erased customer."""
    text = "the customer was erased: nothing of their messages is recorded any more"
    return errors.failed_precondition("CUSTOMER_ERASED", f"message/{name}", text)
