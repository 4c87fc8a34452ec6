"""Pages (AIP-158): sizes, and tokens that hold where a page ended.

A token names the sort columns and the id of the last row, and a hash of the method and the filters it was made for.
"""

import base64
import json
import re
from binascii import b2a_base64
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from libs.cache import digest
from libs.messages import Loaded, encode_repeated
from libs.server.errors import RpcError, invalid_fields

F = TypeVar("F", bound="Filters")

DEFAULT_SIZE = 50
LARGEST_SIZE = 200
LARGEST_BYTES = 3 * 1024 * 1024  # clients accept 4 MB by default
_URLSAFE = bytes.maketrans(b"+/", b"-_")
_LAST_MICROS = 253_402_300_799_999_999
_IDENTIFIER = re.compile("[A-Za-z0-9_-]{1,64}")


class Page(NamedTuple):
    """How many rows to return, and after which; `back`: before which, for a list whose pages lead both ways.

    `block`: a list in blocks is sorted within each; this one's has the rows before this time, in us, and ID.
    """

    size: int
    after_micros: int | None
    after_id: str | None
    filters: str
    back: bool = False
    block: tuple[int, str] | None = None

    @property
    def rows(self) -> int:
        """How many rows to read: one more than the page has, to know whether there is a next page."""
        return self.size + 1

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of a statement: `rows`, and on later pages `after` (or `before`) and `id` of a row shown."""
        begin = {"before" if self.back else "after": self.after_micros, "id": self.after_id} if self.after_id else {}
        return {"rows": self.rows, **begin}

    def fill(self, response: type[Message], rows: Sequence[bytes], time: str, identifier: str) -> bytes:
        """Return the bytes of a response with the page's rows, and its next_page_token if there was one row more.

        The rows go into the response's field 1. `time` (or a number) and `identifier` name the columns that sort them.
        A page of large rows is shorter, see `fitting`.
        """
        shown = fitting(rows[: self.size])
        body = encode_repeated(shown)
        if len(rows) > len(shown):
            row, number = _layout(response)
            last = row.FromString(shown[-1])
            token = self.token(getattr(last, time), getattr(last, identifier))
            body += encode_repeated([token.encode()], number)
        return body

    def token(
        self, time: Timestamp | int, identifier: str, *, back: bool = False, block: tuple[int, str] | None = None
    ) -> str:
        """Return the token of the page after a row, or before it; in a list in blocks, of the row's block."""
        after = time if isinstance(time, int) else time.seconds * 1_000_000 + time.nanos // 1000
        made_for = _made_for_back(self.filters) if back else self.filters
        begin = f',{block[0]},"{block[1]}"' if block else ""
        token = f'["{made_for}",{after},"{identifier}"{begin}]'  # JSON; none of them needs escaping
        return b2a_base64(token.encode(), newline=False).translate(_URLSAFE).decode()


_layouts: dict[object, tuple[type[Message], int]] = {}


def _layout(response: type[Message]) -> tuple[type[Message], int]:
    """Return the message of a response's rows, and the number of its next_page_token."""
    if (layout := _layouts.get(response)) is None:
        fields = response.DESCRIPTOR.fields_by_name
        row = GetMessageClass(cast(Any, response.DESCRIPTOR.fields[0].message_type))
        layout = _layouts[response] = row, fields["next_page_token"].number
    return layout


class Filters(Protocol):
    """The filters of a list, a NamedTuple: one that is empty, false or None does not apply."""

    def _asdict(self) -> dict[str, Any]: ...


def given(wanted: tuple[Filters, Page]) -> dict[str, Any]:
    """Return the parameters of a list's statement by name: the filters that apply, and those of the page."""
    filters, page = wanted
    return {name: value for name, value in filters._asdict().items() if value} | page.params


def names_given(wanted: tuple[Filters, Page]) -> tuple[str, ...]:
    """Return the names of a list's parameters, on which the text of its statement depends."""
    return tuple(given(wanted))


def responses(
    wanted: Sequence[tuple[F, Page]],
    lists: Sequence[Loaded[list[bytes] | None]],
    response: type[Message],
    time: str,
    identifier: str,
    missing: Callable[[F], RpcError] | None = None,
) -> list[Loaded[bytes | RpcError]]:
    """Return the response of each list as `Page.fill` does, or its `missing` error if the list is None."""
    return [
        Loaded(
            xmin, missing(filters) if rows is None and missing else page.fill(response, rows or [], time, identifier)
        )
        for (filters, page), (xmin, rows) in zip(wanted, lists, strict=True)
    ]


def fitting(rows: Sequence[bytes]) -> Sequence[bytes]:
    """Return as many of the first messages as fit into LARGEST_BYTES, at least one if there is one."""
    if sum(map(len, rows)) <= LARGEST_BYTES:
        return rows
    total = 0
    for count, row in enumerate(rows):
        total += len(row)
        if count and total > LARGEST_BYTES:
            return rows[:count]
    return rows


def size(page_size: int, default: int = DEFAULT_SIZE) -> int:
    """Return the page size in use: the default for 0, at most 200."""
    return min(page_size or default, LARGEST_SIZE)


def page(
    page_size: int, page_token: str, method: str, *filters: object, uuid: bool = True, both_ways: bool = False
) -> Page:
    """Return a request's page. `filters` are all the filters of the request, with its salon.

    `both_ways`: the token may lead back.

    Raises: INVALID_FIELD for a token that is not ours or was made for another method or other filters.
    """
    made_for = digest(method, *filters)
    if not page_token:
        return Page(size(page_size), None, None, made_for)
    try:
        token_for, *place = json.loads(base64.b64decode(page_token, altchars=b"-_", validate=True))
        (micros, identifier), *blocks = zip(place[::2], place[1::2], strict=True)
        if len(blocks) > 1 or not all(_is_place(*each, uuid=uuid) for each in ((micros, identifier), *blocks)):
            raise _bad_token("is not a token of this service")
    except (ValueError, TypeError, RecursionError) as error:
        raise _bad_token("is not a token of this service") from error
    back = both_ways and token_for == _made_for_back(made_for)
    if token_for != made_for and not back:
        raise _bad_token("was made for another method or other filters")
    return Page(size(page_size), micros, identifier, made_for, back, *blocks)


def _is_place(micros: Any, identifier: Any, *, uuid: bool) -> bool:
    """Return whether these are a time and an ID. Raises: ValueError, TypeError."""
    valid = type(micros) is int and 0 <= micros <= _LAST_MICROS and _IDENTIFIER.fullmatch(identifier)
    return bool(valid) and (not uuid or str(UUID(identifier)) == identifier)


def _made_for_back(made_for: str) -> str:
    return digest(made_for, "back")


def _bad_token(description: str) -> RpcError:
    return invalid_fields([("page_token", description)])
