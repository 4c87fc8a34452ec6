"""A database's history (which cluster it is, how often a standby was promoted) and how it numbers transactions."""

from typing import Any, NamedTuple
from uuid import uuid4

import psycopg

# pg_control_checkpoint() would return the old timeline until the first checkpoint after a promotion. The backend's pid
# differs from the one that the client got when it connected if a pooler stands in between.
HISTORY = """
    SELECT pg_backend_pid(), system_identifier::text,
        CASE WHEN pg_is_in_recovery() THEN '0' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END
    FROM pg_control_system()"""
XMIN_BITS = 32  # of the transaction id in a row; the higher bits of an xid8 count the wraparounds


class History(NamedTuple):
    """The system identifier of a cluster and its timeline, which each promotion raises."""

    system: int
    timeline: int


class OtherNumbering(Exception):
    """The database numbers transactions in a way that would make cached reads stale."""


async def check_numbering(conn: psycopg.AsyncConnection[Any], table: str) -> None:
    """Insert into a table of idempotent writes, roll back, and compare the row's xmin with pg_current_xact_id().

    They differ behind a router that numbers transactions on each node: the cache would compare unrelated numbers.
    Raises: OtherNumbering; psycopg.Error if the check fails.
    """
    insert = f"""
        INSERT INTO {table} (salon_id, request_id, request_hash, reply) VALUES ('canary', %s, '', '')
        RETURNING xmin::text::bigint"""  # noqa: S608 - a name of ours
    async with conn.transaction(force_rollback=True):
        # Two statements: a router may answer the first one itself and send the second one to another node.
        [(xact_id,)] = await (await conn.execute("SELECT pg_current_xact_id()::text::bigint")).fetchall()
        [(xmin,)] = await (await conn.execute(insert.encode(), (uuid4(),))).fetchall()
    if xact_id % 2**XMIN_BITS != xmin:
        raise OtherNumbering(
            f"the database reports {xact_id} as the current transaction's id and stores its rows with xmin {xmin}:"
            " it does not number all transactions alike (a router, or a database of several nodes?),"
            " so cached reads would be stale"
        )
