"""A statement as a value: several of them can share a round trip (`Connection.run`)."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq.abc import PGresult
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

T = TypeVar("T")

# The names of a statement's columns, by its text: asking the driver anew costs more than making the messages. The texts
# are composed of constants, so they are few.
_columns: dict[str, list[str]] = {}
_PARAMETER = re.compile(r"%\((\w+)\)s")


class Statement(NamedTuple, Generic[T]):
    """A query with parameters such as `%(salon_id)s`; what `read` makes of its column names and rows is its result.

    The rows are as `encoder` takes them: text as bytes, times in us since 2000. The texts of queries must be few: each
    stays prepared.
    """

    query: str
    params: Mapping[str, Any]
    read: Callable[[list[str], list[Any]], T]


def raw_cursor(conn: AsyncConnection[Any]) -> AsyncCursor[Any]:
    """Return a cursor whose rows `encoder` takes: text and JSON as bytes, times in us since 2000."""
    cursor = conn.cursor(binary=True)
    for name in ("text", "jsonb"):
        cursor.adapters.register_loader(name, ByteaBinaryLoader)
    cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
    return cursor


def nothing(names: list[str], rows: list[Any]) -> None:
    """Read the result of a statement that has none."""


def records(rows: Iterable[Any]) -> str:
    """Return named tuples as JSON, for `json_to_recordset`."""
    return json.dumps([row._asdict() for row in rows], default=datetime.isoformat)


@cache
def numbered(query: str) -> tuple[str, list[str]]:
    """Return a query with `$1`, `$2`... for its parameters, as Postgres has them, and the parameters' names."""
    names = list(dict.fromkeys(_PARAMETER.findall(query)))
    return _PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", query), names


def columns(result: PGresult | None, query: str) -> list[str]:
    """Return the names of a statement's columns."""
    names = _columns.get(query)
    if names is None and result is not None:
        names = _columns[query] = [(result.fname(place) or b"").decode() for place in range(result.nfields)]
    return names or []
