"""Parses and validates requests: size, number of fields, number of repeated items, and then the rules of the protos.

The order bounds the work. protovalidate walks a whole message and allocates 3 KB for each violation: 10,000 empty items
took 80 ms of the event loop, 100,000 took 1.6 s.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import grpc
import protovalidate
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message

from libs.server import errors

KIB = 1024
LARGEST_REQUEST_BYTES = 256 * KIB
# A larger request has up to MAX_FIELDS fields: upb takes 10 ns for each one that repeats, 40 ms for 8.5 MiB of them.
UNCOUNTED_BYTES = 512 * KIB
MAX_FIELDS = 1000

MAX_PATHS = 64  # of an update_mask, whose message is not ours
_PATHS = "google.protobuf.FieldMask.paths"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # of a Timestamp
_collect_violations = protovalidate.Validator().collect_violations


class Requests:
    """Parses and validates the requests of one method."""

    def __init__(
        self, method: MethodDescriptor, parse: Callable[[bytes], Message], largest: int = LARGEST_REQUEST_BYTES
    ) -> None:
        """`largest` is the size of the largest request, in bytes."""
        self._parse = parse
        self._largest = largest
        self._counts = _counts(method.input_type)

    def parse(self, data: bytes) -> Message:
        """Return a request, not validated yet. Raises: REQUEST_TOO_LARGE, MALFORMED_REQUEST."""
        if len(data) > self._largest:  # libs/http2 refuses it earlier; grpcio has one limit for all methods
            text = f"the request is larger than {self._largest} bytes"
            raise errors.RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE", text)
        if len(data) > UNCOUNTED_BYTES and not _has_few_fields(data):
            text = f"a request of more than {UNCOUNTED_BYTES} bytes must have at most {MAX_FIELDS} fields and no groups"
            raise errors.RpcError(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", text)
        try:
            return self._parse(data)
        except (DecodeError, RecursionError) as error:
            message = "the bytes are no valid message of this method"
            raise errors.RpcError(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", message) from error

    def check(self, request: Message) -> None:
        """Validate a request. Raises: INVALID_FIELD."""
        if self._counts and (too_many := list(_too_many(request, self._counts, ""))):
            raise errors.invalid_fields(too_many)
        check(request)


def moment(request: Any, field: str, parent: str = "") -> datetime | None:
    """Return a Timestamp field to the microsecond, None if it is not set. `parent` precedes its name in the error.

    Raises: INVALID_FIELD for a time out of range, or invalid nanos, which protovalidate's rules do not check.
    """
    if not request.HasField(field):
        return None
    timestamp = getattr(request, field)
    if not _FIRST_SECOND <= timestamp.seconds <= _LAST_SECOND:
        raise errors.invalid_fields([(parent + field, "must be in the years 1 to 9999")])
    if not 0 <= timestamp.nanos < 1_000_000_000:
        raise errors.invalid_fields([(parent + field, "nanos must be from 0 to 999999999")])
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)


def period(request: Any) -> tuple[datetime, datetime]:
    """Return the required fields start_time and end_time of a request."""
    start, end = moment(request, "start_time"), moment(request, "end_time")
    if start is None or end is None or start >= end:
        raise errors.invalid_fields([("end_time", "end_time must be at least a microsecond after start_time")])
    return start, end


def whole_seconds(request: Any, field: str, path: str = "") -> int | None:
    """Return a Duration field in s, None if it is not set; `path` is that of its message, with a dot at the end.

    Raises: INVALID_FIELD for fractions of a second.
    """
    if not request.HasField(field):
        return None
    duration = getattr(request, field)
    if duration.nanos:
        raise errors.invalid_fields([(path + field, "must be whole seconds")])
    return int(duration.seconds)


def check(request: Message) -> None:
    """Validate a request by the rules of its proto. Raises: INVALID_FIELD."""
    try:
        violations = _collect_violations(request, fail_fast=True)
        if violations:
            shown = type(request)()
            shown.CopyFrom(request)
            _shorten(shown)
            violations = _collect_violations(shown) or violations
    except protovalidate.EvaluationError as error:
        raise errors.invalid_fields([("", "a value is too large or too small to be checked")]) from error
    if violations:
        raise errors.invalid_fields([_violation(violation.proto) for violation in violations])


def _has_few_fields(data: bytes) -> bool:
    """Return whether a message has at most MAX_FIELDS fields, counting repeated and unknown ones, and no groups.

    Fields of nested messages are not counted. False if the message is malformed.
    """
    position = 0
    try:
        for _ in range(MAX_FIELDS):
            if position >= len(data):
                return True
            tag, position = _read_varint(data, position)
            match tag & 7:
                case 0:
                    _, position = _read_varint(data, position)
                case 1:
                    position += 8
                case 2:
                    size, position = _read_varint(data, position)
                    position += size
                case 5:
                    position += 4
                case _:  # groups, and types that do not exist
                    return False
    except (IndexError, ValueError):
        return False
    return position >= len(data)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the number at a position, and the position behind it. Raises: IndexError, ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            return value, position
    raise ValueError("a varint has at most 10 bytes")


class _Count(NamedTuple):
    """A repeated field of at most `most` items, or a field whose message contains repeated fields (`inner`)."""

    name: str
    is_repeated: bool
    most: int | None
    inner: list["_Count"]


def _counts(kind: Descriptor) -> list[_Count]:
    """Return the repeated fields of a message and of its messages, with the `max_items` of their rules."""
    found = []
    for field in kind.fields:
        inner = _counts(field.message_type) if field.message_type is not None else []
        if field.is_repeated or inner:
            rules = field.GetOptions().Extensions[validate_pb2.field].repeated
            most = rules.max_items if rules.HasField("max_items") else MAX_PATHS if field.full_name == _PATHS else None
            found.append(_Count(field.name, field.is_repeated, most, inner))
    return found


def _too_many(message: Any, counts: list[_Count], path: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each field with too many items, and a description."""
    for name, is_repeated, most, inner in counts:
        value = getattr(message, name)
        if is_repeated and most is not None and len(value) > most:
            yield path + name, f"must contain no more than {most} item(s)"
        elif inner:
            for place, each in enumerate(value) if is_repeated else [(None, value)]:
                yield from _too_many(each, inner, f"{path}{name}{'' if place is None else f'[{place}]'}.")


def _shorten(message: Message) -> None:
    """Truncate repeated fields to the number of violations that an error can hold."""
    for field, value in message.ListFields():
        if field.is_repeated:
            del value[errors.MOST_VIOLATIONS :]
        elif field.message_type is not None:
            _shorten(value)


def _violation(violation: Any) -> tuple[str, str]:
    """Return the field's path and the message. The ID of a rule of a whole message begins with the field's name."""
    path = [
        element.field_name + (f"[{element.subscript.value}]" if element.subscript else "")
        for element in (violation.field.elements if violation.field else ())
    ]
    if not violation.rule:
        path.append(violation.rule_id.split(".")[0])
    return ".".join(path), violation.message or violation.rule_id
