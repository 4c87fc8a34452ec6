"""A statement as a value: `Connection.run` sends several of them in one round trip."""

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

_PARAMETER = re.compile(r"%(?:\((\w+)\))?s")
_NUMBER = re.compile(r"\$[0-9]+")


class Statement(NamedTuple, Generic[T]):
    """A query with its parameters; the result is what `read` returns for its column names and rows.

    Parameters are written `%(name)s`, `%s` or `$1`. Rows have the types that `encoder` takes: bytes for text and JSON,
    microseconds since 2000 for times. Each query text stays prepared on each connection, so there must be few.
    """

    query: str
    params: Any  # a mapping for %(name)s, else a sequence
    read: Callable[[list[str], list[Any]], T]


def no_result(names: list[str], rows: list[Any]) -> None:
    """Read the result of a statement whose rows do not matter."""


def names_and_rows(names: list[str], rows: list[Any]) -> tuple[list[str], list[Any]]:
    """Read the column names and the rows of a statement."""
    return names, rows


def json_rows(rows: Iterable[Any]) -> str:
    """Return named tuples as JSON for `json_to_recordset`, each with its `place` among them."""
    return json.dumps([{"place": place, **row._asdict()} for place, row in enumerate(rows)], default=datetime.isoformat)


@cache
def numbered(query: str) -> tuple[bytes, list[Any]]:
    """Return a query with the parameters `$1`, `$2`..., and the key of each in the statement's `params`."""
    if not (found := _PARAMETER.findall(query)):
        return query.encode(), list(range(len(set(_NUMBER.findall(query)))))
    if not any(found):
        numbers = iter(range(1, len(found) + 1))
        return _PARAMETER.sub(lambda _: f"${next(numbers)}", query).encode(), list(range(len(found)))
    names = list(dict.fromkeys(found))
    return _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", query).encode(), names
