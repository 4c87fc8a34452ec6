"""Rows as protobuf messages: the SELECT names the fields, so that there is one schema and one codec.

A cached statement has its stamp (see libs/cache) as its first column. It starts from the stamp, so that an empty result
carries one too: `FROM (SELECT ... AS stamp) LEFT JOIN LATERAL (...) ON true`; its second column, an id, is NULL then.
"""

from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message
from psycopg import AsyncConnection, AsyncCursor
from psycopg.abc import Buffer, Params
from psycopg.adapt import Loader
from psycopg.pq import Format

M = TypeVar("M", bound=Message)
T = TypeVar("T")

# 2000-01-01 in microseconds since 1970: from where Postgres counts.
_POSTGRES_EPOCH = 946_684_800_000_000

# The lowest transaction still running when the statement looked: all below had ended.
# OFFSET 0 keeps it from being worked out anew for each row.
STAMP = "(SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS stamp OFFSET 0) AS snapshot"


class Loaded(NamedTuple, Generic[T]):
    """What a statement read, and its stamp."""

    stamp: int
    value: T


class TimestampLoader(Loader):
    """Load a timestamptz as the fields of a google.protobuf.Timestamp: a third of the cost of a datetime (measured)."""

    format = Format.BINARY

    def load(self, data: Buffer) -> dict[str, int]:
        """Return seconds and nanos since 1970."""
        seconds, micros = divmod(int.from_bytes(data, "big", signed=True) + _POSTGRES_EPOCH, 1_000_000)
        return {"seconds": seconds, "nanos": micros * 1000}


# The names of a statement's columns, by its text: asking the driver anew costs more than making the messages. The texts
# are composed of constants, so they are few.
_columns: dict[str, list[str]] = {}


def columns(cursor: AsyncCursor[Any], query: str) -> list[str]:
    """Return the names of a statement's columns."""
    names = _columns.get(query)
    if names is None:
        names = _columns[query] = [column.name for column in cursor.description or ()]
    return names


async def fetch_rows(conn: AsyncConnection[Any], query: str, params: Params) -> tuple[list[str], list[Any]]:
    """Return the names of the columns, and the rows."""
    cursor = conn.cursor(binary=True)
    await cursor.execute(query.encode(), params)
    return columns(cursor, query), await cursor.fetchall()


async def fetch_stamped(
    conn: AsyncConnection[Any], kind: type[M], query: str, params: Params
) -> list[Loaded[M | None]]:
    """Return every row of a cached statement: None where the column after the stamp is NULL."""
    names, rows = await fetch_rows(conn, query, params)
    return [
        Loaded(row[0], None if row[1] is None else kind(**dict(zip(names[1:], row[1:], strict=True)))) for row in rows
    ]


async def fetch_page(conn: AsyncConnection[Any], kind: type[M], query: str, params: Params) -> Loaded[list[M]]:
    """Return the rows of a cached list. Raises: LookupError if what the list belongs to is not there."""
    rows = await fetch_stamped(conn, kind, query, params)
    if not rows:
        raise LookupError
    return Loaded(rows[0].stamp, [row.value for row in rows if row.value is not None])


async def fetch_all(conn: AsyncConnection[Any], kind: type[M], query: str, params: Params) -> list[M]:
    """Return every row of a statement that is not cached."""
    names, rows = await fetch_rows(conn, query, params)
    return [kind(**dict(zip(names, row, strict=True))) for row in rows]


async def fetch_one(conn: AsyncConnection[Any], kind: type[M], query: str, params: Params) -> M | None:
    """Return the one row of a statement that is not cached, None if there is none."""
    rows = await fetch_all(conn, kind, query, params)
    return rows[0] if rows else None


async def fetch_returned(conn: AsyncConnection[Any], kind: type[M], query: str, params: Params) -> M:
    """Return the row of a statement that always has one. Raises: LookupError."""
    if (row := await fetch_one(conn, kind, query, params)) is None:
        raise LookupError
    return row
