"""Rows as protobuf messages: the SELECT names the fields, so that there is one schema and one codec.

What is read comes as the bytes of messages, for the cache or a reply; what a writer goes on with comes as messages.

A cached statement has its stamp (see libs/cache) as its first column. It starts from the stamp, so that an empty result
carries one too: `FROM (SELECT ... AS stamp) LEFT JOIN LATERAL (...) ON true`; its second column, an id, is NULL then.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar, cast

from google.protobuf.message import Message
from psycopg import AsyncConnection
from psycopg.abc import Params

from libs.db.connection import Connection
from libs.db.encoding import Encode, encoder
from libs.db.statement import columns

M = TypeVar("M", bound=Message)
T = TypeVar("T")

# The lowest transaction still running when the statement looked: all below had ended.
# OFFSET 0 keeps it from being worked out anew for each row.
STAMP = "(SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS stamp OFFSET 0) AS snapshot"


class Loaded(NamedTuple, Generic[T]):
    """What a statement read, and its stamp."""

    stamp: int
    value: T


_encoders: dict[str, Encode] = {}


@cache
def _sent(query: str) -> bytes:
    """Return the statement as it is sent, the same object each time: the driver then keeps what it knows of it."""
    return query.encode()


def text_array(values: Iterable[str]) -> str:
    """Return a text[] as its literal, for `%s::text[]`: 0.13 to 0.23 of a list's cost (100 values; decision 0020)."""
    quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return "{" + ",".join([f'"{value}"' for value in quoted]) + "}"


async def fetch_rows(conn: AsyncConnection[Any], query: str, params: Params) -> tuple[list[str], list[Any]]:
    """Return the names of the columns, and the rows."""
    cursor = conn.cursor(binary=True)
    await cursor.execute(_sent(query), params)
    return columns(cursor.pgresult, query), await cursor.fetchall()


async def fetch_undecoded(conn: AsyncConnection[Any], query: str, params: Params) -> tuple[list[str], list[Any]]:
    """Return the names of the columns, and the rows as `encoder` takes them."""
    cursor = cast(Connection, conn).rows
    await cursor.execute(_sent(query), params)
    return columns(cursor.pgresult, query), await cursor.fetchall()


async def fetch_stamped(
    conn: AsyncConnection[Any], kind: type[Message], query: str, params: Sequence[Any]
) -> list[Loaded[bytes | None]]:
    """Return every row of a cached statement as a message's bytes: None where the column after the stamp is NULL.

    Its parameters are `$1`, `$2`...
    """
    result, rows = await cast(Connection, conn).look_up(query, params)
    if (encode := _encoders.get(query)) is None:
        encode = _encoders[query] = encoder(kind, *columns(result, query)[1:])
    return [Loaded(row[0], None if row[1] is None else encode(row[1:])) for row in rows]


async def fetch_page(
    conn: AsyncConnection[Any], kind: type[Message], query: str, params: Params
) -> Loaded[list[bytes]]:
    """Return the rows of a cached list. Raises: LookupError if what the list belongs to is not there."""
    names, rows = await fetch_undecoded(conn, query, params)
    if not rows:
        raise LookupError
    encode = encoder(kind, *names[1:])
    return Loaded(rows[0][0], [encode(row[1:]) for row in rows if row[1] is not None])


async def fetch_encoded(conn: AsyncConnection[Any], kind: type[Message], query: str, params: Params) -> list[bytes]:
    """Return every row of a statement that is not cached as a message's bytes."""
    names, rows = await fetch_undecoded(conn, query, params)
    encode = encoder(kind, *names)
    return [encode(row) for row in rows]


async def fetch_all(conn: AsyncConnection[Any], kind: type[M], query: str, params: Params) -> list[M]:
    """Return every row of a statement that is not cached."""
    return [kind.FromString(row) for row in await fetch_encoded(conn, kind, query, params)]


async def fetch_one(conn: AsyncConnection[Any], kind: type[M], query: str, params: Params) -> M | None:
    """Return the one row of a statement that is not cached, None if there is none."""
    rows = await fetch_all(conn, kind, query, params)
    return rows[0] if rows else None


async def fetch_returned(conn: AsyncConnection[Any], kind: type[M], query: str, params: Params) -> M:
    """Return the row of a statement that always has one. Raises: LookupError."""
    if (row := await fetch_one(conn, kind, query, params)) is None:
        raise LookupError
    return row
