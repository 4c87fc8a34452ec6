"""Statements whose rows are protobuf messages: the SELECT names the message's fields.

Reads for the cache or a reply return the bytes of messages. Reads within a write return messages.

A cached statement answers many arguments at once: its parameters are arrays, which `unnest` turns into rows. Its first
columns are the snapshot xmin (see libs/cache) and the number of the argument, from 1. Each argument has at least one
row; if nothing is found for it, the next column, an id, is NULL:

    SELECT xmin, place, page.*
    FROM {SNAPSHOT_XMIN}, {unnest(...)} LEFT JOIN LATERAL (SELECT ... LIMIT wanted.rows) AS page ON true
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

from google.protobuf.message import Message
from psycopg import AsyncConnection
from psycopg.abc import Params

from libs.db.connection import Connection
from libs.messages.encode import encoder

M = TypeVar("M", bound=Message)
T = TypeVar("T")

# All transactions below it had ended when the statement read. OFFSET 0 keeps Postgres from computing it for each row.
SNAPSHOT_XMIN = "(SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin OFFSET 0) AS snapshot"

NOT_STORED = 0  # as the snapshot xmin of a load, which no cache stores then


class Loaded(NamedTuple, Generic[T]):
    """What a statement read, and its snapshot xmin."""

    xmin: int
    value: T


class LoadedFor(NamedTuple, Generic[T]):
    """What a statement read that is true for `valid_ms` ms from then on, None: until a write changes it."""

    xmin: int
    value: T
    valid_ms: int | None


class Batch(NamedTuple):
    """The rows of a cached statement that answers many arguments: the columns after the xmin and the argument's number.

    `slices` are the rows of each argument, by its number from 0; arguments without rows have none. A statement may give
    NOT_STORED as the xmin of all rows of an argument.
    """

    xmins: tuple[int, ...]  # of the rows
    names: list[str]
    columns: list[tuple[Any, ...]]
    slices: dict[int, slice]


def unnest(types: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the FROM item that turns arrays into rows of `names` and `place`; `types` has the type of each name.

    Rows joined with it by LATERAL come in the order of the arrays, since the subquery is run for one row at a time.
    """
    arrays = ", ".join(f"${number}::{types[name]}[]" for number, name in enumerate(names, 1))
    return f"unnest({arrays}) WITH ORDINALITY AS wanted ({', '.join(names)}, place)"


def where(conditions: Mapping[str, str], names: Sequence[str]) -> str:
    """Return the conditions of those of `names` that have one."""
    return " AND ".join(conditions[name] for name in names if name in conditions)


def text_array(values: Iterable[str]) -> str:
    """Return the literal of a text[]: 0.13 to 0.23 of the cost of a list (100 values; decision 0020)."""
    return "{" + ",".join(['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]) + "}"


async def fetch_rows(conn: AsyncConnection[Any], query: str, params: Params) -> tuple[list[str], list[Any]]:
    """Return the column names, and the rows as Python values."""
    cursor = conn.cursor(binary=True)
    await cursor.execute(query.encode(), params)
    return [column.name for column in cursor.description or ()], await cursor.fetchall()


async def fetch_raw(conn: AsyncConnection[Any], query: str, params: Any) -> tuple[list[str], list[Any]]:
    """Return the column names, and the rows in the types that `encoder` takes."""
    return await cast(Connection, conn).fetch(query, params)


async def fetch_loaded(
    conn: AsyncConnection[Any], kind: type[Message], query: str, params: Sequence[Any]
) -> list[Loaded[bytes | None]]:
    """Return each row of a cached statement as a message's bytes, None if the column after the xmin is NULL.

    The statement has one row for each argument, in their order, and no column `place`.
    """
    names, rows = await cast(Connection, conn).fetch(query, params)
    xmins, *columns = zip(*rows, strict=True)
    messages = encoder(kind, *names[1:])(columns)
    return [
        Loaded(xmin, None if identifier is None else message)
        for xmin, identifier, message in zip(xmins, columns[0], messages, strict=True)
    ]


async def fetch_batch(conn: AsyncConnection[Any], query: str, params: Sequence[Mapping[str, Any]]) -> Batch:
    """Return the rows of a cached statement whose parameters are those of `unnest`: a mapping for each argument."""
    arrays = [text_array([str(argument[name]) for argument in params]) for name in params[0]]
    names, rows = await cast(Connection, conn).fetch(query, arrays)
    if not rows:
        return Batch((), [], [], {})
    xmins, places, *columns = zip(*rows, strict=True)
    if list(places) != sorted(places):
        raise ValueError("the rows of a batch are not in the order of its arguments")
    slices, first = {}, 0
    for place, count in Counter(places).items():  # in the order of the rows
        slices[place - 1] = slice(first, first + count)
        first += count
    return Batch(xmins, names[2:], columns, slices)


async def fetch_pages(
    conn: AsyncConnection[Any], kind: type[Message], query: str, params: Sequence[Mapping[str, Any]]
) -> list[Loaded[list[bytes] | None]]:
    """Return the rows of each list that a cached statement reads; None if the list's parent does not exist."""
    xmins, names, columns, slices = await fetch_batch(conn, query, params)
    messages = encoder(kind, *names)(columns) if columns else []
    return [
        Loaded(max(xmins, default=NOT_STORED), None)
        if rows is None
        else Loaded(xmins[rows.start], messages[rows] if columns[0][rows.start] is not None else [])
        for rows in map(slices.get, range(len(params)))
    ]


async def fetch_encoded(conn: AsyncConnection[Any], kind: type[Message], query: str, params: Any) -> list[bytes]:
    """Return each row of a statement that is not cached as a message's bytes."""
    names, rows = await cast(Connection, conn).fetch(query, params)
    return encoder(kind, *names)(list(zip(*rows, strict=True))) if rows else []


async def fetch_one(conn: AsyncConnection[Any], kind: type[M], query: str, params: Any) -> M | None:
    """Return the first row of a statement that is not cached, None if there is none."""
    rows = await fetch_encoded(conn, kind, query, params)
    return kind.FromString(rows[0]) if rows else None


async def fetch_returned(conn: AsyncConnection[Any], kind: type[M], query: str, params: Any) -> M:
    """Return the row of a statement that always has one. Raises: LookupError."""
    if (row := await fetch_one(conn, kind, query, params)) is None:
        raise LookupError
    return row
