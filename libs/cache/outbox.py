"""The table `cache_outbox`: tags whose invalidation could not reach Redis before their write was committed.

A row is a tag and the id of a transaction that wrote to it. Writers only insert, so none waits for another. Processes
without Redis keep the table small meanwhile (`compact`): a tag keeps its highest id only. If there are very
many tags, one row stands for all (EVERYTHING): a process that finds it drops the cache.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import psycopg

EVERYTHING = ""
VERY_MANY = [(EVERYTHING, 0)]
MOST_GROUPS = 10_000
ROWS_A_STATEMENT = 50_000  # deleted at once: a fraction of a second

Pending: TypeAlias = tuple[str, int]


async def read(conn: psycopg.AsyncConnection[Any]) -> list[Pending]:
    """Return the tags of the committed rows, each with its highest id; VERY_MANY if there are."""
    cursor = await conn.execute("SELECT tag, max(xact_id) FROM cache_outbox GROUP BY tag LIMIT %s", [MOST_GROUPS + 1])
    pending = await cursor.fetchall()
    return pending if len(pending) <= MOST_GROUPS else VERY_MANY


async def compact(conn: psycopg.AsyncConnection[Any]) -> None:
    """Keep one row a tag; if there are very many tags, replace all rows by one that stands for EVERYTHING.

    The id of that row is this statement's own, above those of the rows it replaces: they were committed before. Rows
    are found by their place, which also locks them in one order, so that two processes don't deadlock.
    """
    while (await conn.execute(_DELETE_LOWER, [ROWS_A_STATEMENT])).rowcount == ROWS_A_STATEMENT:
        pass
    replaced = ROWS_A_STATEMENT if await read(conn) == VERY_MANY else 0
    while replaced == ROWS_A_STATEMENT:
        cursor = await conn.execute(_REPLACE, [ROWS_A_STATEMENT])
        replaced = sum([row[0] for row in await cursor.fetchall()])


# The subquery reads one index entry a row. A join may compare each row of a tag with all others, if the table has no
# statistics.
_DELETE_LOWER = """
    DELETE FROM cache_outbox WHERE ctid = ANY(ARRAY(
        SELECT p.ctid FROM cache_outbox AS p
        WHERE p.xact_id < (SELECT max(h.xact_id) FROM cache_outbox AS h WHERE h.tag = p.tag)
        LIMIT %s))"""

_REPLACE = """
    WITH replaced AS (
        DELETE FROM cache_outbox WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM cache_outbox WHERE tag <> '' LIMIT %s)) RETURNING tag)
    INSERT INTO cache_outbox (tag, xact_id)
    SELECT '', pg_current_xact_id()::text::bigint WHERE EXISTS (SELECT FROM replaced)
    RETURNING (SELECT count(*) FROM replaced)"""


async def delete(conn: psycopg.AsyncConnection[Any], registered: Sequence[Pending], epoch: str) -> None:
    """Delete what the registered ids cover, if this epoch is in force still: else it was the wrong cache.

    That is also a lower id whose row was committed since: no load is stored that might lack its transaction. The same
    holds of EVERYTHING: what a lower row of it replaced was committed before the higher row was.
    """
    await conn.execute(
        "DELETE FROM cache_outbox WHERE ctid = ANY(ARRAY("
        "SELECT p.ctid FROM cache_outbox AS p JOIN unnest(%s::text[], %s::bigint[]) AS r (tag, xact_id)"
        " ON p.tag = r.tag AND p.xact_id <= r.xact_id))"
        " AND (SELECT epoch FROM cache_in_force) = %s",
        [*_columns(registered), epoch],
    )


async def left(conn: psycopg.AsyncConnection[Any], rows: Sequence[Pending]) -> list[bool]:
    """Say of each row whether it, or one that has replaced it, is left."""
    cursor = await conn.execute(
        "SELECT EXISTS (SELECT FROM cache_outbox AS p"
        " WHERE p.tag IN (r.tag, '') AND p.xact_id >= r.xact_id)"
        " FROM unnest(%s::text[], %s::bigint[]) WITH ORDINALITY AS r (tag, xact_id, place) ORDER BY place",
        _columns(rows),
    )
    return [row[0] for row in await cursor.fetchall()]


def _columns(pending: Sequence[Pending]) -> list[list[Any]]:
    return [list(column) for column in zip(*pending, strict=True)]
