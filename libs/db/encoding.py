"""Rows as the bytes of protobuf messages, without the messages in between.

Text is UTF-8 both in Postgres's binary format and in protobuf's, so most of a row goes over as it came. All else is
encoded by protobuf itself, a field at a time and, since it comes again and again, once for each value.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import AsyncConnection, AsyncCursor
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import ByteaBinaryLoader

Encode: TypeAlias = Callable[[Any], bytes]

KEPT_VALUES = 512  # of a field
KEPT_TIMES = 8192
# 2000-01-01 in microseconds since 1970: from where Postgres counts.
_POSTGRES_EPOCH = 946_684_800_000_000


def undecoded(conn: AsyncConnection[Any]) -> AsyncCursor[Any]:
    """Return a cursor whose rows `encoder` takes: text and JSON as bytes, times in us since 2000."""
    cursor = conn.cursor(binary=True)
    for name in ("text", "jsonb"):
        cursor.adapters.register_loader(name, ByteaBinaryLoader)
    cursor.adapters.register_loader("timestamptz", Int8BinaryLoader)
    return cursor


def encoder(kind: type[Message], *columns: str) -> Encode:
    """Return what makes a message's bytes of a row of an `undecoded` cursor; the columns are named as the fields."""
    encode = _encoders.get((kind, columns))
    if encode is None:
        fields = [_field(kind, kind.DESCRIPTOR.fields_by_name[column]) for column in columns]
        encode = _encoders[kind, columns] = partial(_row, fields)
    return encode


_encoders: dict[tuple[object, ...], Encode] = {}


def _row(fields: Sequence[Encode], row: Sequence[Any]) -> bytes:
    """Return the bytes of a row's fields; NULL is a field that is not set."""
    return b"".join([field(value) for field, value in zip(fields, row, strict=True) if value is not None])


@lru_cache(4096)
def prefix(size: int, field: int = 1) -> bytes:
    """Return what stands before so many bytes of text, or of a message, in a field of this number."""
    return _varint(field << 3 | 2) + _varint(size)


def elements(messages: Iterable[bytes], field: int = 1) -> bytes:
    """Return serialized messages as the elements of a repeated field."""
    return b"".join([part for message in messages for part in (prefix(len(message), field), message)])


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _field(kind: type[Message], field: Any) -> Encode:
    """Return what makes the bytes of a field of a column's value."""
    name = field.name

    def encode(value: Any) -> bytes:
        return kind(**{name: value}).SerializeToString()

    if field.is_repeated and field.type == field.TYPE_STRING:
        kept = lru_cache(KEPT_VALUES)(lambda values: encode([value.decode() for value in values]))
        return lambda values: kept(tuple(values))
    if field.type == field.TYPE_STRING:
        return _text(field.number, empty=encode(""))
    if field.message_type is Timestamp.DESCRIPTOR:
        announced = prefix(0, field.number)[:-1]
        return lambda micros: announced + _moment(micros)
    if field.type == field.TYPE_ENUM:
        return lru_cache(KEPT_VALUES)(lambda value: encode(value.decode()))
    if field.type == field.TYPE_MESSAGE:
        return lru_cache(KEPT_VALUES)(lambda value: encode(json.loads(value[1:])))  # byte 0 is the version of jsonb
    return lru_cache(KEPT_VALUES)(encode)


def _text(field: int, empty: bytes) -> Encode:
    heads = [empty, *(prefix(size, field) for size in range(1, 128))]

    def text(value: bytes) -> bytes:
        size = len(value)
        return (heads[size] if size < 128 else prefix(size, field)) + value

    return text


@lru_cache(KEPT_TIMES)
def _moment(micros: int) -> bytes:
    """Return a Timestamp's bytes behind their length."""
    seconds, rest = divmod(micros + _POSTGRES_EPOCH, 1_000_000)
    moment = Timestamp(seconds=seconds, nanos=rest * 1000).SerializeToString()
    return bytes([len(moment)]) + moment
