"""Rows as the bytes of protobuf messages, without the messages in between.

Text is UTF-8 both in Postgres's binary format and in protobuf's, so most of a row goes over as it came. All else is
encoded once for each value, since values come again and again.

Rows are encoded column by column: what is the same in all rows is encoded once, and the loops over the rest run in C. A
page of 50 messages takes 30 us, row by row it took 100 (decision 0028).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

Encode: TypeAlias = Callable[[Sequence[Sequence[Any]]], list[bytes]]

KEPT_VALUES = 512  # of a field, or lengths of its texts
KEPT_TIMES = 4096
# 2000-01-01 in microseconds since 1970: from where Postgres counts.
_POSTGRES_EPOCH = 946_684_800_000_000


def encoder(kind: type[Message], *columns: str) -> Encode:
    """Return what makes the messages' bytes of at least one row of a `raw_cursor`, given as columns.

    The columns are named as the fields; NULL is a field that is not set.
    """
    encode = _encoders.get((kind, columns))
    if encode is None:
        fields = [_field(kind, kind.DESCRIPTOR.fields_by_name[column]) for column in columns]
        encode = _encoders[kind, columns] = partial(_rows, fields)
    return encode


def encode_row(kind: type[Message], names: Sequence[str], row: Sequence[Any]) -> bytes:
    """Return the bytes of one row's message; the names are those of its fields."""
    return encoder(kind, *names)([(value,) for value in row])[0]


_encoders: dict[tuple[object, ...], Encode] = {}


class _Kept(dict[Any, bytes]):
    """What `encode` makes of values, which are kept; of None it is nothing."""

    def __init__(self, encode: Callable[[Any], bytes], most: int = KEPT_VALUES) -> None:
        self._encode = encode
        self._most = most

    def __missing__(self, value: Any) -> bytes:
        if len(self) >= self._most:
            self.clear()
        self[value] = found = b"" if value is None else self._encode(value)
        return found


class _Times(dict[int | None, bytes]):
    """The bytes of a Timestamp field by the us since 2000; of None it is nothing.

    Times seldom come again, so this is written for those that are new: one message serves all, and it calls nothing.
    """

    def __init__(self, field: int) -> None:
        super().__init__({None: b""})
        self._prefixes = [prefix(size, field) for size in range(20)]
        self._timestamp = Timestamp()

    def __missing__(self, micros: int) -> bytes:
        if len(self) >= KEPT_TIMES:
            self.clear()
            self[None] = b""
        timestamp = self._timestamp
        timestamp.seconds, rest = divmod(micros + _POSTGRES_EPOCH, 1_000_000)
        timestamp.nanos = rest * 1000
        moment = timestamp.SerializeToString()
        self[micros] = found = self._prefixes[len(moment)] + moment
        return found


class _Field(NamedTuple):
    """Encodes a field: of one value, and of a column of them as parts whose rows are to be joined."""

    one: Callable[[Any], bytes]
    column: Callable[[Sequence[Any]], Sequence[Iterable[bytes]]]


def _rows(fields: Sequence[_Field], columns: Sequence[Sequence[Any]]) -> list[bytes]:
    """Return the bytes of each row's fields; those that are the same in all rows come first."""
    same: list[bytes] = []
    parts: list[Iterable[bytes]] = []
    count = len(columns[0])
    for field, column in zip(fields, columns, strict=True):
        value = column[0]
        if value == column[-1] and column.count(value) == count:
            same.append(field.one(value))
        else:
            parts += field.column(column)
    return list(map(b"".join, zip(repeat(b"".join(same), count), *parts, strict=False)))


def prefix(size: int, field: int = 1) -> bytes:
    """Return what stands before so many bytes of text, or of a message, in a field of this number."""
    return _varint(field << 3 | 2) + _varint(size)


@cache
def _prefixes(field: int) -> _Kept:
    return _Kept(partial(prefix, field=field))


def elements(messages: Sequence[bytes], field: int = 1) -> bytes:
    """Return serialized messages as the elements of a repeated field."""
    prefixes = map(_prefixes(field).__getitem__, map(len, messages))
    return b"".join(chain.from_iterable(zip(prefixes, messages, strict=True)))


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _field(kind: type[Message], field: Any) -> _Field:
    """Return what makes the bytes of a field of a column's values."""
    name = field.name

    def encode(value: Any) -> bytes:
        return kind(**{name: value}).SerializeToString()

    if field.is_repeated and field.type == field.TYPE_STRING:
        lists = _Kept(lambda values: encode([value.decode() for value in values]))
        return _by_value(lambda values: b"" if values is None else lists[tuple(values)])
    if field.type == field.TYPE_STRING:
        return _text(field.number, empty=encode(""))
    if field.message_type is Timestamp.DESCRIPTOR:
        return _by_value(_Times(field.number).__getitem__)
    if field.type == field.TYPE_ENUM:
        return _by_value(_Kept(lambda value: encode(value.decode())).__getitem__)
    if field.type == field.TYPE_MESSAGE:
        # byte 0 is the version of jsonb
        return _by_value(_Kept(lambda value: encode(json.loads(value[1:]))).__getitem__)
    if field.type in (field.TYPE_INT32, field.TYPE_INT64, field.TYPE_UINT32, field.TYPE_UINT64):
        zero, tag = encode(0), _varint(field.number << 3)
        return _by_value(_Kept(lambda value: tag + _varint(value % 2**64) if value else zero).__getitem__)
    return _by_value(_Kept(encode).__getitem__)


def _by_value(one: Callable[[Any], bytes]) -> _Field:
    return _Field(one, lambda column: [map(one, column)])


def _text(field: int, empty: bytes) -> _Field:
    prefixes = _Kept(lambda size: prefix(size, field) if size else empty)

    def one(value: bytes | None) -> bytes:
        return b"" if value is None else prefixes[len(value)] + value

    def parts(column: Sequence[Any]) -> Sequence[Iterable[bytes]]:
        if None in column:
            return [map(one, column)]
        return [map(prefixes.__getitem__, map(len, column)), column]

    return _Field(one, parts)
