"""Rows as protobuf messages: the SELECT names the fields, so that there is one schema and one codec.

What is read comes as the bytes of messages, for the cache or a reply; what a writer goes on with comes as messages.

A cached statement answers many arguments at once: its parameters are arrays, which `unnest` turns into rows. Its first
columns are the xmin (see libs/cache) and the argument's place, from 1. It starts from both, so that each argument has
a row even if nothing is found for it; the next column, an id, is NULL then:

    SELECT xmin, place, page.*
    FROM {SNAPSHOT_XMIN}, {unnest(...)} LEFT JOIN LATERAL (SELECT ... LIMIT wanted.rows) AS page ON true
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar, cast

from google.protobuf.message import Message
from psycopg import AsyncConnection
from psycopg.abc import Params

from libs.db.connection import Connection
from libs.db.statement import columns
from libs.messages.encode import encoder

M = TypeVar("M", bound=Message)
T = TypeVar("T")

# The lowest transaction still running when the statement looked: all below had ended.
# OFFSET 0 keeps it from being worked out anew for each row.
SNAPSHOT_XMIN = "(SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin OFFSET 0) AS snapshot"


class Loaded(NamedTuple, Generic[T]):
    """What a statement read, and its xmin."""

    xmin: int
    value: T


class Batch(NamedTuple):
    """The rows of a cached statement that answers many arguments, as the columns that follow its xmin and the place.

    `slices` are the rows of each argument, by its number, from 0; it has none that a JOIN has left out.
    """

    xmin: int
    names: list[str]
    columns: list[tuple[Any, ...]]
    slices: dict[int, slice]


def unnest(types: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the FROM item that turns arrays into rows of `names` and their place; `types` has the type of each name.

    The rows after a join with it come in the order of the arrays, since a LATERAL subquery is run for one at a time.
    """
    arrays = ", ".join(f"${place}::{types[name]}[]" for place, name in enumerate(names, 1))
    return f"unnest({arrays}) WITH ORDINALITY AS wanted ({', '.join(names)}, place)"


def where(conditions: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the conditions of those of `names` that have one."""
    return " AND ".join(conditions[name] for name in names if name in conditions)


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


async def fetch_raw(conn: AsyncConnection[Any], query: str, params: Params) -> tuple[list[str], list[Any]]:
    """Return the names of the columns, and the rows as `encoder` takes them."""
    cursor = cast(Connection, conn).rows
    await cursor.execute(_sent(query), params)
    return columns(cursor.pgresult, query), await cursor.fetchall()


async def fetch_loaded(
    conn: AsyncConnection[Any], kind: type[Message], query: str, params: Sequence[Any]
) -> list[Loaded[bytes | None]]:
    """Return every row of a cached statement as a message's bytes: None where the column after the xmin is NULL.

    It has one row for each argument, in their order, and no place among its columns. Its parameters are `$1`, `$2`...
    """
    result, rows = await cast(Connection, conn).look_up(query, params)
    stamps, *found = zip(*rows, strict=True)
    messages = encoder(kind, *columns(result, query)[1:])(found)
    return [
        Loaded(xmin, None if name is None else message)
        for xmin, name, message in zip(stamps, found[0], messages, strict=True)
    ]


async def fetch_batch(conn: AsyncConnection[Any], query: str, params: Sequence[Mapping[str, Any]]) -> Batch:
    """Return the rows of a cached statement whose parameters are those of `unnest`: a mapping for each argument."""
    arrays = [text_array([str(each[name]) for each in params]) for name in params[0]]
    result, rows = await cast(Connection, conn).look_up(query, arrays)
    if not rows:
        return Batch(0, [], [], {})
    stamps, places, *found = zip(*rows, strict=True)
    if list(places) != sorted(places):
        raise ValueError("the rows of a batch are not in the order of its arguments")
    slices, first = {}, 0
    for place, count in Counter(places).items():  # in the order of the rows, where a place's come together
        slices[place - 1] = slice(first, first + count)
        first += count
    return Batch(stamps[0], columns(result, query)[2:], found, slices)


async def fetch_pages(
    conn: AsyncConnection[Any], kind: type[Message], query: str, params: Sequence[Mapping[str, Any]]
) -> list[Loaded[list[bytes] | None]]:
    """Return the rows of each list that a cached statement reads; None if what a list belongs to is not there."""
    xmin, names, found, slices = await fetch_batch(conn, query, params)
    messages = encoder(kind, *names)(found) if found else []
    return [
        Loaded(xmin, None if rows is None else messages[rows] if found[0][rows.start] is not None else [])
        for rows in map(slices.get, range(len(params)))
    ]


async def fetch_encoded(conn: AsyncConnection[Any], kind: type[Message], query: str, params: Params) -> list[bytes]:
    """Return every row of a statement that is not cached as a message's bytes."""
    names, rows = await fetch_raw(conn, query, params)
    return encoder(kind, *names)(list(zip(*rows, strict=True))) if rows else []


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
