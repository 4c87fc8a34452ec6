"""Whether the transaction ids that the cache compares are those that rows get.

Behind a router that numbers transactions on each node, pg_current_xact_id() may be another node's: a cache that trusts
it is stale, and nothing tells.
"""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from libs.db.connection import BEGIN, Connection
from libs.db.statement import Statement

XMIN_BITS = 32  # of a row's id; the rest of a transaction's counts how often these have wrapped


class OtherNumbering(Exception):
    """The database numbers transactions in a way that the cache can't be right on."""


def _number(names: Sequence[str], rows: Sequence[Any]) -> int:
    return int(rows[0][0])


async def check_numbering(conn: Connection, table: str) -> None:
    """Insert into a table of replies to requests, roll back, and compare the row's id with the transaction's.

    Raises: OtherNumbering; psycopg.Error if that can't be told.
    """
    row = {"request_id": str(uuid4())}
    insert = f"""
        INSERT INTO {table} (salon_id, request_id, request_hash, reply)
        VALUES ('canary', %(request_id)s::uuid, '', '') RETURNING xmin::text::bigint"""  # noqa: S608 - a literal of ours
    try:
        _, xact_id, xmin = await conn.run(
            BEGIN,
            Statement("SELECT pg_current_xact_id()::text::bigint", {}, _number),
            Statement(insert, row, _number),
        )
    finally:
        await conn.rollback()
    if xact_id % 2**XMIN_BITS != xmin:
        raise OtherNumbering(
            f"the database says that transaction {xact_id} is the current one and gives its rows number {xmin}:"
            " it does not number all transactions alike (a router, or a database of several nodes?),"
            " so cached reads would be stale"
        )
