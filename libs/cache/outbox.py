"""The invalidation outbox, `cache_outbox`: tags that could not be registered in Redis before their write committed.

A row has a tag's version key and the ID of a transaction that wrote to it. Writers only insert, so none waits for
another. While there is no Redis, processes keep the table small (`compact`): a tag keeps its highest ID only. If there
are very many tags, one row stands for all (EVERYTHING), and a process that finds it drops the cache.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import psycopg

EVERYTHING = ""
VERY_MANY = [(EVERYTHING, 0)]
MAX_TAGS = 10_000
ROWS_PER_STATEMENT = 50_000  # deleted at once: a fraction of a second

OutboxRow: TypeAlias = tuple[str, int]


async def read(conn: psycopg.AsyncConnection[Any]) -> list[OutboxRow]:
    """Return the tags of the committed rows, each with its highest ID; VERY_MANY if there are more than MAX_TAGS."""
    cursor = await conn.execute("SELECT tag, max(xact_id) FROM cache_outbox GROUP BY tag LIMIT %s", [MAX_TAGS + 1])
    rows = await cursor.fetchall()
    return rows if len(rows) <= MAX_TAGS else VERY_MANY


async def insert(conn: psycopg.AsyncConnection[Any], version_keys: Sequence[str], xact_id: int) -> None:
    """Add tags that a transaction writes to, in that transaction."""
    await conn.execute(
        "INSERT INTO cache_outbox (tag, xact_id) SELECT unnest(%s::text[]), %s ON CONFLICT DO NOTHING",
        [version_keys, xact_id],
    )


async def compact(conn: psycopg.AsyncConnection[Any]) -> None:
    """Keep one row per tag; if there are very many tags, replace all rows with one for EVERYTHING.

    The ID of that row is this statement's own, which is above those of the rows it replaces: they were committed
    before. Rows are found by their place, which also locks them in one order, so that two processes don't deadlock.
    """
    while (await conn.execute(_DELETE_LOWER, [ROWS_PER_STATEMENT])).rowcount == ROWS_PER_STATEMENT:
        pass
    replaced = ROWS_PER_STATEMENT if await read(conn) == VERY_MANY else 0
    while replaced == ROWS_PER_STATEMENT:
        cursor = await conn.execute(_REPLACE, [ROWS_PER_STATEMENT])
        replaced = sum([row[0] for row in await cursor.fetchall()])


# The subquery reads one index entry per row. A join may compare each row of a tag with all others, if the table has no
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


async def delete(conn: psycopg.AsyncConnection[Any], registered: Sequence[OutboxRow], epoch: str) -> None:
    """Delete the rows that registered IDs cover, if the epoch is still in force: otherwise the wrong cache has them.

    A lower ID whose row was committed since is covered, too: no load is stored that might lack its transaction. The
    same holds for EVERYTHING: what a lower row of it replaced was committed before the higher row was.
    """
    await conn.execute(
        "DELETE FROM cache_outbox WHERE ctid = ANY(ARRAY("
        "SELECT p.ctid FROM cache_outbox AS p JOIN unnest(%s::text[], %s::bigint[]) AS r (tag, xact_id)"
        " ON p.tag = r.tag AND p.xact_id <= r.xact_id))"
        " AND (SELECT epoch FROM cache_in_force) = %s",
        [*_columns(registered), epoch],
    )


async def are_left(conn: psycopg.AsyncConnection[Any], rows: Sequence[OutboxRow]) -> list[bool]:
    """Return for each row whether it, or one that has replaced it, is still there."""
    cursor = await conn.execute(
        "SELECT EXISTS (SELECT FROM cache_outbox AS p"
        " WHERE p.tag IN (r.tag, '') AND p.xact_id >= r.xact_id)"
        " FROM unnest(%s::text[], %s::bigint[]) WITH ORDINALITY AS r (tag, xact_id, place) ORDER BY place",
        _columns(rows),
    )
    return [row[0] for row in await cursor.fetchall()]


def _columns(rows: Sequence[OutboxRow]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
