"""Pages (AIP-158): sizes, and tokens that hold where a page ended.

A token names the sort columns and the id of the last row, and a hash of the filters it was made for.
"""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.cache import digest
from libs.db import elements
from libs.rpc.errors import RpcError, invalid_fields

DEFAULT_SIZE = 50
LARGEST_SIZE = 200
LARGEST_BYTES = 3 * 1024 * 1024  # a client takes 4 MB unless it is told otherwise
_LAST_MICROS = 253_402_300_799_999_999
_IDENTIFIER = re.compile("[A-Za-z0-9_-]{1,64}")


class Page(NamedTuple):
    """How many rows to return, and after which."""

    size: int
    after_micros: int | None
    after_id: str | None
    filters: str

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of a statement: `limit` is a row more than the page has; it begins behind `after` and `id`."""
        return {"limit": self.size + 1, "after": self.after_micros, "id": self.after_id}

    def fill(self, response: type[Message], rows: Sequence[bytes], time: str, identifier: str) -> bytes:
        """Return the bytes of a response with the page's rows, and its next_page_token if there was one row more.

        The rows go into the response's field 1; `time` (or a number) and `identifier` name the columns that sort
        them. A page of large rows ends sooner, see `fitting`.
        """
        shown = fitting(rows[: self.size])
        body = elements(shown)
        if len(rows) > len(shown):
            [*_, last] = getattr(response.FromString(elements(shown[-1:])), response.DESCRIPTOR.fields[0].name)
            token = self.token(getattr(last, time), getattr(last, identifier))
            body += response(next_page_token=token).SerializeToString()
        return body

    def token(self, time: Timestamp | int, identifier: str) -> str:
        """Return the token of the page after a row."""
        after = time if isinstance(time, int) else time.seconds * 1_000_000 + time.nanos // 1000
        token = json.dumps([self.filters, after, identifier], separators=(",", ":"))
        return base64.urlsafe_b64encode(token.encode()).decode()


def fitting(rows: Sequence[bytes]) -> Sequence[bytes]:
    """Return the first messages, as many as a reply may carry by LARGEST_BYTES; at least one if there is one."""
    total = 0
    for count, row in enumerate(rows):
        total += len(row)
        if count and total > LARGEST_BYTES:
            return rows[:count]
    return rows


def size(page_size: int, default: int = DEFAULT_SIZE) -> int:
    """Return the size in force: 0 is the default, above 200 is 200."""
    return min(page_size or default, LARGEST_SIZE)


def page(page_size: int, page_token: str, *filters: object, uuid: bool = True) -> Page:
    """Read a request's page; `filters` are all that the token must have been made for.

    Raises: INVALID_FIELD for a token that is none of ours or was made for other filters.
    """
    made_for = digest(*filters)
    if not page_token:
        return Page(size(page_size), None, None, made_for)
    try:
        token_for, micros, identifier = json.loads(base64.b64decode(page_token, altchars=b"-_", validate=True))
        valid = type(micros) is int and 0 <= micros <= _LAST_MICROS and _IDENTIFIER.fullmatch(identifier)
        if not valid or (uuid and str(UUID(identifier)) != identifier):
            raise _bad_token("is not a token of this service")
    except (ValueError, TypeError, RecursionError) as error:
        raise _bad_token("is not a token of this service") from error
    if token_for != made_for:
        raise _bad_token("was made for other filters")
    return Page(size(page_size), micros, identifier, made_for)


def _bad_token(description: str) -> RpcError:
    return invalid_fields([("page_token", description)])
