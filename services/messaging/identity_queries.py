"""The statements on the identities of customers: their numbers and IDs, and the conversation that those find."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from libs.db import Statement, no_result
from libs.messages import NOT_STORED, text_array
from services.messaging.erased_ids import is_erased
from services.messaging.identities import Claim, Identity, Owned, Settlement


def conversation_of(name: str, row: str) -> str:
    """Return the SQL that finds the conversation_id of a conversation_id, phone_number or user_id in a column of `row`.

    A name that the conversation no longer has is found, too. NULL for an unknown one.
    Source: indexes conversations_pkey, salon_id_phone_number, customer_identities_pkey.
    """
    named = f"{row}.{name}"
    former = f"""(SELECT i.customer_id FROM customer_identities AS i
            WHERE i.salon_id = {row}.salon_id AND i.identity = {named}::text AND i.kind = '{name.upper()}')"""
    if name == "user_id":
        return former
    return f"""coalesce((
            SELECT k.conversation_id FROM conversations AS k WHERE k.salon_id = {row}.salon_id AND k.{name} = {named}
        ), {former})"""


def is_identity(name: str) -> str:
    """Return the SQL that is true if a conversation_id or phone_number of `wanted` names a customer in the identities.

    Source: index customer_identities_pkey.
    """
    return f"""EXISTS (
            SELECT FROM customer_identities AS i WHERE i.salon_id = wanted.salon_id
                AND i.identity = wanted.{name}::text AND i.kind = '{name.upper()}'
        )"""


def current_names(names: Sequence[str]) -> tuple[str, str]:
    """Return the SQL of a cached statement that turns a conversation_id and a phone_number of `wanted` into `current`.

    The first is a FROM item; the second the snapshot xmin, NOT_STORED for a name that the conversation no longer has
    or whose customer has no conversation yet.
    Source: indexes conversations_pkey, salon_id_phone_number, customer_identities_pkey.
    """
    columns = []
    if "conversation_id" in names:
        columns.append(f"coalesce({conversation_of('conversation_id', 'wanted')}, wanted.conversation_id)")
    if "phone_number" in names:
        columns.append(_CURRENT_NUMBER)
    given = [name for name in ("conversation_id", "phone_number") if name in names]
    if not given:
        return "", "xmin"
    conditions = [f"current.{name} = wanted.{name}" for name in given]
    current = ", ".join(f"{column} AS {name}" for column, name in zip(columns, given, strict=True))
    xmin = f"CASE WHEN {' AND '.join(conditions)} THEN xmin ELSE {NOT_STORED} END"
    return f" CROSS JOIN LATERAL (SELECT {current} OFFSET 0) AS current", xmin


# NULL for a number of a customer who has no conversation: their first message invalidates only the newest number.
_CURRENT_NUMBER = f"""coalesce((
            SELECT k.phone_number FROM conversations AS k
            WHERE k.salon_id = wanted.salon_id AND k.phone_number = wanted.phone_number
        ), (
            SELECT k.phone_number FROM customer_identities AS i JOIN conversations AS k
                ON k.salon_id = i.salon_id AND k.conversation_id = i.customer_id
            WHERE i.salon_id = wanted.salon_id AND i.identity = wanted.phone_number AND i.kind = 'PHONE_NUMBER'
        ), CASE WHEN NOT {is_identity("phone_number")} THEN wanted.phone_number END)"""


def unsettled(salon_id: str, claims: Sequence[Claim]) -> Statement[bool]:
    """Return whether one of the claims names two customers, or an identity that its customer does not have yet.

    Or one that the customer had before, if the claim is newer than what the customer has: they returned to it.
    Not if all identities of a claim are new, and no other claim has one of them: then its first message makes them
    those of a new customer. A claim of a recorded or erased message counts for nothing.
    Source: indexes whatsapp_id, customer_identities_pkey, idx_customer_identities_customer, and those of `is_erased`.
    """
    return Statement(_UNSETTLED, {"salon_id": salon_id, "claims": _rows(claims)}, lambda _, rows: bool(rows))


def _rows(claims: Sequence[Claim]) -> str:
    columns = ("phone_number", "user_id", "at", "whatsapp_id", "amends")
    rows = [{column: getattr(claim, column) for column in columns} for claim in claims]
    return json.dumps([{"place": place, **row} for place, row in enumerate(rows)], default=datetime.isoformat)


_GIVEN = """json_to_recordset(%(claims)s::json)
            AS given (place int, phone_number text, user_id text, at timestamptz, whatsapp_id text, amends text)"""
_IS_OLD = f"""({is_erased("%(salon_id)s", "given.whatsapp_id")} OR {is_erased("%(salon_id)s", "given.amends")}
            OR EXISTS (
                SELECT FROM messages AS m WHERE m.salon_id = %(salon_id)s AND m.whatsapp_id = given.whatsapp_id
            ))"""
_UNSETTLED = f"""
    WITH given AS (
        SELECT phone_number, user_id, least(max(at), now()) AS at
        FROM {_GIVEN}
        WHERE NOT {_IS_OLD}
        GROUP BY phone_number, user_id
    )
    SELECT given.user_id FROM given
    LEFT JOIN customer_identities AS p
        ON p.salon_id = %(salon_id)s AND p.identity = given.phone_number AND p.kind = 'PHONE_NUMBER'
    LEFT JOIN customer_identities AS u
        ON u.salon_id = %(salon_id)s AND u.identity = given.user_id AND u.kind = 'USER_ID'
    WHERE p.customer_id IS DISTINCT FROM u.customer_id OR p.customer_id IS NULL AND EXISTS (
        SELECT FROM given AS other
        WHERE (other.phone_number = given.phone_number) <> (other.user_id = given.user_id)
    ) OR EXISTS (
        SELECT FROM customer_identities AS newer
        WHERE newer.salon_id = %(salon_id)s AND newer.customer_id = p.customer_id AND newer.seen_at < given.at AND (
            newer.kind = 'PHONE_NUMBER' AND newer.seen_at > p.seen_at
            OR newer.kind = 'USER_ID' AND newer.seen_at > u.seen_at
        )
    )
    LIMIT 1"""


async def has_customer(
    conn: AsyncConnection[Any], salon_id: str, phone_number: str | None, user_id: str | None
) -> bool:
    """Return whether somebody has or had one of these: then their salon is known, too.

    Source: index customer_identities_pkey.
    """
    query = b"""
        SELECT FROM customer_identities WHERE salon_id = %s
            AND (identity, kind) IN ((%s, 'PHONE_NUMBER'), (%s, 'USER_ID'))"""
    return bool((await conn.execute(query, (salon_id, phone_number, user_id))).rowcount)


async def new_claims(conn: AsyncConnection[Any], salon_id: str, claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims whose message is not recorded yet, and was not erased, nor what it amends.

    Source: index whatsapp_id, and those of `is_erased`.
    """
    query = f"SELECT given.place FROM {_GIVEN} WHERE NOT {_IS_OLD}"
    params = {"salon_id": salon_id, "claims": _rows(claims)}
    rows = await (await conn.execute(query.encode(), params)).fetchall()
    return [claims[place] for place in sorted(place for (place,) in rows)]


async def owned_identities(conn: AsyncConnection[Any], salon_id: str, names: Sequence[Identity]) -> list[Owned]:
    """Return all identities of the customers that have one of these.

    Source: indexes customer_identities_pkey, idx_customer_identities_customer, conversations_pkey.
    """
    query = b"""
        SELECT i.customer_id::text, i.kind, i.identity, i.seen_at, c.started_at
        FROM customer_identities AS i LEFT JOIN conversations AS c
            ON c.salon_id = i.salon_id AND c.conversation_id = i.customer_id
        WHERE i.salon_id = %(salon_id)s AND i.kind <> 'CONVERSATION_ID' AND i.customer_id = ANY (ARRAY(
            SELECT k.customer_id FROM customer_identities AS k
            JOIN unnest(%(kinds)s::text[], %(identities)s::text[]) AS given (kind, identity) USING (kind, identity)
            WHERE k.salon_id = %(salon_id)s
        ))"""
    kinds, identities = [name.kind for name in names], [name.identity for name in names]
    params = {"salon_id": salon_id, "kinds": kinds, "identities": identities}
    return [Owned(*row) for row in await (await conn.execute(query, params)).fetchall()]


def write_settlement(salon_id: str, settlement: Settlement) -> list[Statement[Any]]:
    """Return the statements that write a settlement, in their order.

    Source: indexes customers_pkey, customer_identities_pkey, idx_customer_identities_customer, conversations_pkey,
    salon_id_phone_number, idx_messages_conversation_created.
    """
    of_salon = {"salon_id": salon_id}
    given = [
        {
            "identity": name.identity,
            "kind": name.kind,
            "customer_id": settlement.owner[name],
            "seen_at": settlement.seen[name],
        }
        for name in settlement.changed
    ]
    customers = of_salon | {"customer_ids": text_array(sorted(settlement.touched))}
    moved = customers | {"phone_numbers": text_array(settlement.moved_numbers)}
    return [
        Statement(_CREATE, of_salon | {"customer_ids": text_array(settlement.created)}, no_result),
        *(
            Statement(_MERGE, of_salon | {"kept": kept, "merged": merged}, no_result)
            for kept, merged in settlement.merges
        ),
        Statement(_GIVE, of_salon | {"given": json.dumps(given, default=datetime.isoformat)}, no_result),
        Statement(_TAKE, moved, no_result),
        Statement(_NAME, customers, no_result),
    ]


_CREATE = "INSERT INTO customers (salon_id, customer_id) SELECT %(salon_id)s::text, unnest(%(customer_ids)s::uuid[])"
_MERGE = "SELECT merge_customers(%(salon_id)s::text, %(kept)s::uuid, %(merged)s::uuid)"
_GIVE = """
    INSERT INTO customer_identities (salon_id, identity, kind, customer_id, seen_at)
    SELECT %(salon_id)s::text, identity, kind, customer_id, seen_at
    FROM json_to_recordset(%(given)s::json) AS given (identity text, kind text, customer_id uuid, seen_at timestamptz)
    ON CONFLICT ON CONSTRAINT customer_identities_pkey
        DO UPDATE SET customer_id = excluded.customer_id, seen_at = excluded.seen_at"""
# A conversation loses a number before another one gets it.
_TAKE = """
    UPDATE conversations SET phone_number = NULL
    WHERE salon_id = %(salon_id)s AND conversation_id = ANY(%(customer_ids)s::uuid[])
        AND phone_number = ANY(%(phone_numbers)s::text[])"""
_NAME = """
    WITH named AS MATERIALIZED (
        SELECT customer_id, name_conversation(%(salon_id)s::text, customer_id)
        FROM unnest(%(customer_ids)s::uuid[]) AS customer_id
    )
    INSERT INTO message_changes (salon_id, type, conversation_id)
    SELECT %(salon_id)s, 'CUSTOMER_UPDATED', customer_id FROM named"""
