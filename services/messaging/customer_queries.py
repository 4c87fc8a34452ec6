"""The statements on customers."""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from libs.db import Statement
from libs.messages import (
    NOT_STORED,
    SNAPSHOT_XMIN,
    Loaded,
    fetch_loaded,
    fetch_pages,
    text_array,
    unnest,
    where,
)
from libs.server import Page, RpcError, given, names_given, responses
from parlor.messaging.v1.messaging_pb2 import Customer, ListCustomersRequest, ListCustomersResponse
from services.messaging.identities import Claim

_COLUMNS = (
    "c.customer_id::text, c.salon_id, coalesce(nullif(c.contact_name, ''), k.customer_name, '') AS customer_name,"
    " identities.phone_numbers, identities.user_ids, k.conversation_id::text, c.opted_out,"
    " c.opt_out_changed_at AS opt_out_time, c.opt_out_reason, k.started_at AS first_seen_time,"
    " k.service_window_expires_at - interval '24 hours' AS last_seen_time, c.created_at AS create_time"
)
_JOINS = """
        LEFT JOIN conversations AS k ON k.salon_id = c.salon_id AND k.conversation_id = c.customer_id
        CROSS JOIN LATERAL (
            SELECT array_agg(identity ORDER BY seen_at DESC, identity) FILTER (WHERE kind = 'PHONE_NUMBER')
                    AS phone_numbers,
                array_agg(identity ORDER BY seen_at DESC, identity) FILTER (WHERE kind = 'USER_ID') AS user_ids
            FROM customer_identities AS i WHERE i.salon_id = c.salon_id AND i.customer_id = c.customer_id
        ) AS identities"""
_OF_IDENTITY = """(
            SELECT i.customer_id FROM customer_identities AS i
            WHERE i.salon_id = wanted.salon_id AND i.identity = wanted.{}::text AND i.kind = '{}'
        )"""
_CONDITIONS = {
    "customer_id": "c.customer_id = coalesce("
    f"{_OF_IDENTITY.format('customer_id', 'CONVERSATION_ID')}, wanted.customer_id)",
    "phone_number": f"c.customer_id = {_OF_IDENTITY.format('phone_number', 'PHONE_NUMBER')}",
    "user_id": f"c.customer_id = {_OF_IDENTITY.format('user_id', 'USER_ID')}",
}


class CustomerNames(NamedTuple):
    """The names of a customer: at least one is not empty, and all that are not must match."""

    salon_id: str
    customer_id: str
    phone_number: str
    user_id: str

    @property
    def given(self) -> dict[str, str]:
        """The names that are not empty."""
        return {field: value for field, value in self._asdict().items() if value}

    def names(self) -> tuple[str, ...]:
        """Return the names that are given, on which the text of the statement depends."""
        return tuple(self.given)

    def __str__(self) -> str:
        """Return the name for error texts: the id, or the name of the field, since its value identifies a customer."""
        return f"{self.salon_id}/{self.customer_id or ('phone_number' if self.phone_number else 'user_id')}"


async def get_customers(conn: AsyncConnection[Any], wanted: Sequence[CustomerNames]) -> list[Loaded[bytes | None]]:
    """Return each customer, None for one that does not exist. All give the same names.

    What is read by an earlier name is not stored: a write invalidates those that the conversation has.
    Source: indexes customers_pkey, customer_identities_pkey, idx_customer_identities_customer, conversations_pkey.
    """
    statement = customer_statement(wanted[0].names())
    arrays = [text_array([named.given[name] for named in wanted]) for name in wanted[0].names()]
    return await fetch_loaded(conn, Customer, statement, arrays)


@cache
def customer_statement(names: tuple[str, ...]) -> str:
    """Return the statement that reads customers; `names` are those of its parameters."""
    types = {"salon_id": "text", "customer_id": "uuid", "phone_number": "text", "user_id": "text"}
    xmin = "xmin"
    if "customer_id" in names:
        xmin = f"CASE WHEN found.customer_id <> wanted.customer_id::text THEN {NOT_STORED} ELSE xmin END"
    elif "phone_number" in names:
        only = "CASE WHEN cardinality(found.phone_numbers) = 1 THEN wanted.phone_number END"
        current = f"coalesce(found.current_number, {only}) IS NOT DISTINCT FROM wanted.phone_number"
        xmin = f"CASE WHEN found.customer_id IS NULL OR {current} THEN xmin ELSE {NOT_STORED} END"
    columns = ", ".join(f"found.{name}" for name in _FIELDS)
    return f"""
        SELECT {xmin} AS xmin, {columns}
        FROM {SNAPSHOT_XMIN}, {unnest(types, names)}
        LEFT JOIN LATERAL (
            SELECT {_COLUMNS}, k.phone_number AS current_number FROM customers AS c{_JOINS}
            WHERE c.salon_id = wanted.salon_id AND {where(_CONDITIONS, names)}
        ) AS found ON true
        ORDER BY place"""


_FIELDS = tuple(field.name for field in Customer.DESCRIPTOR.fields)


class CustomerFilters(NamedTuple):
    """Which customers of a salon to list; an empty filter is not applied.

    `opted_out` is `true` or `false`. `name` is a LIKE pattern, `number` the beginning of an E.164 number: one of them,
    if both are given.
    """

    salon_id: str
    opted_out: str
    name: str
    number: str


def customer_filters(request: ListCustomersRequest, number: str) -> CustomerFilters:
    """Return the filters of a request; `number` is its query as the beginning of a phone number, "" if it is none."""
    opted_out = str(request.opted_out).lower() if request.HasField("opted_out") else ""
    escaped = re.sub(r"([\\%_])", r"\\\1", request.query.strip())
    return CustomerFilters(request.salon_id, opted_out, f"%{escaped}%" if escaped else "", number)


def statement_key(wanted: tuple[CustomerFilters, Page]) -> tuple[tuple[str, ...], str]:
    """Return what the text of a list's statement depends on: the names of its parameters, and `opted_out`."""
    return names_given(wanted), wanted[0].opted_out


async def list_customers(
    conn: AsyncConnection[Any], wanted: Sequence[tuple[CustomerFilters, Page]]
) -> list[Loaded[bytes | RpcError]]:
    """Return a ListCustomersResponse for each page, newest first. All pages have the same filters.

    Source: indexes idx_customers_salon_created, idx_customers_salon_opted_out; by a name idx_customers_salon_name,
    idx_conversations_salon_name_part; by a number idx_customer_identities_prefix.
    """
    statement = customers_statement(*statement_key(wanted[0]))
    lists = await fetch_pages(conn, Customer, statement, list(map(given, wanted)))
    return responses(wanted, lists, ListCustomersResponse, "create_time", "customer_id")


_TYPES = {
    "salon_id": "text",
    "opted_out": "boolean",
    "name": "text",
    "number": "text",
    "rows": "int",
    "after": "bigint",
    "id": "uuid",
}
_NAMED = """SELECT k.conversation_id AS customer_id FROM conversations AS k
                WHERE k.salon_id = wanted.salon_id AND k.customer_name <> '' AND k.customer_name ILIKE wanted.name
                UNION SELECT n.customer_id FROM customers AS n
                WHERE n.salon_id = wanted.salon_id AND n.contact_name ILIKE wanted.name"""
_NUMBERED = """SELECT i.customer_id FROM customer_identities AS i
                WHERE i.salon_id = wanted.salon_id AND i.kind = 'PHONE_NUMBER'
                    AND i.identity ~>=~ wanted.number AND i.identity ~<~ (wanted.number || ':')"""  # ':' follows '9'


@cache
def customers_statement(names: tuple[str, ...], opted_out: str) -> str:
    """Return the statement that lists customers; `names` are those of its parameters.

    `opted_out` is a part of the text: Postgres uses a partial index only for a condition that it knows beforehand.
    """
    conditions = {
        "salon_id": "c.salon_id = wanted.salon_id",
        "opted_out": "c.opted_out" if opted_out == "true" else "NOT c.opted_out",
        "after": "(c.created_at, c.customer_id) < (timestamptz 'epoch' + wanted.after * interval '1 us', wanted.id)",
    }
    customers = f"SELECT c.* FROM customers AS c WHERE {where(conditions, names)}"
    if found := " UNION ".join(sql for name, sql in (("name", _NAMED), ("number", _NUMBERED)) if name in names):
        # OFFSET 0: each one that was found is looked up. Postgres can't know that they are few.
        of_found = f"{customers} AND c.customer_id = found.customer_id OFFSET 0"
        customers = f"SELECT c.* FROM ({found}) AS found CROSS JOIN LATERAL ({of_found}) AS c"
    return f"""
        SELECT xmin, place, page.*
        FROM {SNAPSHOT_XMIN}, {unnest(_TYPES, names)}
        LEFT JOIN LATERAL (
            SELECT {_COLUMNS} FROM (
                {customers}
                ORDER BY c.created_at DESC, c.customer_id DESC LIMIT wanted.rows
            ) AS c{_JOINS}
            ORDER BY c.created_at DESC, c.customer_id DESC
        ) AS page ON true"""


async def read_customer(conn: AsyncConnection[Any], names: CustomerNames) -> Customer | None:
    """Return a customer within a write; see `get_customers`."""
    found = await get_customers(conn, [names])
    return Customer.FromString(found[0].value) if found[0].value is not None else None


class CustomerFact(NamedTuple):
    """What the salon's address book (`contact_name`) or the customer (`opted_out`, `reason`) says; None: nothing.

    An empty contact_name: the customer is no longer in the address book. `customer_id`: whom it is said of; without one
    it is said of the customer of the user_id or, if nobody has that, of the phone_number.
    """

    phone_number: str | None
    user_id: str | None
    at: datetime
    contact_name: str | None = None
    opted_out: bool | None = None
    reason: str = ""
    customer_id: str | None = None

    @property
    def claim(self) -> Claim | None:
        """What it says of who the customer is; None if it makes nobody a customer."""
        return Claim(self.phone_number, self.user_id, self.at) if self.contact_name != "" else None


def write_facts(salon_id: str, facts: Sequence[CustomerFact]) -> Statement[list[tuple[str, list[str]]]]:
    """Write what is said of customers who are known, unless something newer is; return the id and numbers of those.

    Source: indexes customer_identities_pkey, customers_pkey, idx_customer_identities_customer.
    """
    rows = [fact._asdict() for fact in facts]
    params = {"salon_id": salon_id, "facts": json.dumps(rows, default=datetime.isoformat)}
    return Statement(_WRITE_FACTS, params, _changed)


def _changed(_: list[str], rows: list[Any]) -> list[tuple[str, list[str]]]:
    return [(customer_id.decode(), numbers) for customer_id, numbers in rows]


_WRITE_FACTS = """
    WITH given AS (
        SELECT coalesce(fact.customer_id, u.customer_id, p.customer_id) AS customer_id, contact_name, opted_out, reason,
            least(at, now()) AS at
        FROM json_to_recordset(%(facts)s::json) AS fact (customer_id uuid, phone_number text, user_id text,
            at timestamptz, contact_name text, opted_out boolean, reason text)
        LEFT JOIN customer_identities AS u
            ON u.salon_id = %(salon_id)s AND u.identity = fact.user_id AND u.kind = 'USER_ID'
        LEFT JOIN customer_identities AS p
            ON p.salon_id = %(salon_id)s AND p.identity = fact.phone_number AND p.kind = 'PHONE_NUMBER'
    ), contact AS (
        SELECT DISTINCT ON (customer_id) * FROM given WHERE contact_name IS NOT NULL
        ORDER BY customer_id, at DESC, contact_name DESC
    ), choice AS (
        SELECT DISTINCT ON (customer_id) * FROM given WHERE opted_out IS NOT NULL
        ORDER BY customer_id, at DESC, opted_out DESC, reason DESC
    ), newest AS (
        SELECT customer_id, contact.contact_name, contact.at AS contact_named_at, choice.opted_out,
            choice.reason, choice.at AS opt_out_changed_at
        FROM contact FULL JOIN choice USING (customer_id)
    )
    UPDATE customers AS c SET
        contact_name = CASE WHEN is_newer_name THEN n.contact_name ELSE c.contact_name END,
        contact_named_at = greatest(c.contact_named_at, n.contact_named_at),
        opted_out = CASE WHEN is_newer_choice THEN n.opted_out ELSE c.opted_out END,
        opt_out_reason = CASE WHEN is_newer_choice THEN n.reason ELSE c.opt_out_reason END,
        opt_out_changed_at = greatest(c.opt_out_changed_at, n.opt_out_changed_at)
    FROM newest AS n JOIN customers AS k ON k.salon_id = %(salon_id)s AND k.customer_id = n.customer_id, LATERAL (
        SELECT (n.contact_named_at, n.contact_name)
                > (coalesce(k.contact_named_at, '-infinity'), k.contact_name) AS is_newer_name,
            (n.opt_out_changed_at, n.opted_out, n.reason)
                > (coalesce(k.opt_out_changed_at, '-infinity'), k.opted_out, k.opt_out_reason) AS is_newer_choice
    ) AS compared
    WHERE c.salon_id = %(salon_id)s AND c.customer_id = n.customer_id AND (is_newer_name OR is_newer_choice)
    RETURNING c.customer_id::text, (
        SELECT coalesce(json_agg(i.identity), '[]') FROM customer_identities AS i
        WHERE i.salon_id = c.salon_id AND i.customer_id = c.customer_id AND i.kind = 'PHONE_NUMBER'
    )"""
