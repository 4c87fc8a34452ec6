"""How gRPC lies in HTTP/2: requests' headers, messages with their prefix, compression, statuses and metadata.

See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

import grpc

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

PREFIX_SIZE = 5
RESPONSE: Headers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
ACCEPTED_ENCODINGS = b"identity,deflate,gzip"
STEP_BYTES = 256 * 1024  # inflated at a time
MOST_KNOWN_HEADS = 256

_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)?(;.*)?", re.IGNORECASE)
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
# Not for handlers: what HTTP/2 and gRPC use themselves.
_RESERVED = frozenset(
    (
        *(b":method", b":scheme", b":path", b":authority", b"te", b"host", b"content-type", b"content-length"),
        *(b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"accept-encoding"),
    )
)
_STATUS = {code.value[0]: str(code.value[0]).encode() for code in grpc.StatusCode}
_OK = (b"grpc-status", b"0")
_TEXT = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Refused(Exception):
    """Ends a call whose request can't be served, with a status."""

    def __init__(self, code: grpc.StatusCode, details: str, *trailers: tuple[bytes, bytes]) -> None:
        """Carry a status, and more trailers."""
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailers = trailers


class NotGrpc(Exception):
    """Ends a request that is no gRPC request, with the status of HTTP."""

    def __init__(self, status: bytes) -> None:
        """Carry a status."""
        super().__init__(status)
        self.status = status


class Head(NamedTuple):
    """The headers of a request: `timeout` in s, `encoding` of its messages."""

    path: str
    timeout: float | None
    encoding: bytes | None
    metadata: Metadata


def read_head(headers: Headers, max_metadata: int) -> Head:
    """Return the head of a request. Raises: NotGrpc, Refused."""
    fields = dict(headers)
    if fields[b":method"] != b"POST":
        raise NotGrpc(b"405")
    content_type = fields.get(b"content-type", b"")
    if content_type != b"application/grpc" and not _CONTENT_TYPE.fullmatch(content_type):
        raise NotGrpc(b"415")
    metadata = [header for header in headers if header[0] not in _RESERVED]
    path = fields[b":path"]
    if sum([len(name) + len(value) for name, value in metadata], len(path)) > max_metadata:
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the metadata is larger than {max_metadata} bytes")
    encoding = fields.get(b"grpc-encoding")
    if encoding is not None and encoding not in _WINDOW_BITS:
        if encoding != b"identity":
            raise Refused(
                grpc.StatusCode.UNIMPLEMENTED,
                "the encoding of the messages is not supported",
                (b"grpc-accept-encoding", ACCEPTED_ENCODINGS),
            )
        encoding = None
    timeout = fields.get(b"grpc-timeout")
    seconds = None if timeout is None else _seconds(timeout)
    return Head(path.decode("latin-1"), seconds, encoding, tuple([_read(name, value) for name, value in metadata]))


def _seconds(timeout: bytes) -> float:
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "grpc-timeout is malformed")
    return int(found[1]) * _UNITS[found[2]]


def _read(name: bytes, value: bytes) -> tuple[str, str | bytes]:
    """Return metadata as a handler sees it: the values of names in `-bin` are bytes."""
    if not name.endswith(b"-bin"):
        return name.decode("latin-1"), value.decode("latin-1")
    try:
        return name.decode("latin-1"), b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except ValueError as error:
        message = f"the metadata {name.decode('latin-1')} is not base64"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message) from error


class Heads:
    """The heads of a server's requests: most come with headers that came before, and those are read once.

    A warm read costs 11 % less with it.
    """

    def __init__(self, max_metadata: int) -> None:
        """Bound the metadata of a request, in bytes."""
        self._max_metadata = max_metadata
        self._known: dict[Headers, Head] = {}

    def read(self, headers: Headers) -> Head:
        """Return the head of a request. Raises: NotGrpc, Refused."""
        head = self._known.get(headers)
        if head is None:
            head = read_head(headers, self._max_metadata)
            if len(self._known) == MOST_KNOWN_HEADS:
                del self._known[next(iter(self._known))]
            self._known[headers] = head
        return head


def write_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Return metadata of a handler as headers."""
    return [
        (name.encode(), value.encode() if type(value) is str and name[-4:] != "-bin" else _written(name, value))
        for name, value in metadata
    ]


def _written(name: str, value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return b64encode(value).rstrip(b"=") if name.endswith("-bin") else value


def status_trailers(code: int, details: str) -> list[tuple[bytes, bytes]]:
    """Return a status as trailers, with its text percent-encoded."""
    if not code and not details:
        return [_OK]
    trailers = [(b"grpc-status", _STATUS.get(code, b"2"))]
    if details:
        trailers.append((b"grpc-message", quote(details, safe=_TEXT).encode()))
    return trailers


def frame(message: bytes) -> bytes:
    """Return a message with its prefix, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def is_frame(data: bytes) -> bool:
    """Return whether data are one message with its prefix, not compressed."""
    size = len(data) - PREFIX_SIZE
    return size >= 0 and data[0] == 0 and int.from_bytes(data[1:PREFIX_SIZE], "big") == size


class Messages:
    """The messages of one request, read from its data as that comes in; `max_size` bounds one."""

    __slots__ = ("_data", "_max_size")

    def __init__(self, max_size: int) -> None:
        """Begin with no data."""
        self._data = bytearray()
        self._max_size = max_size

    def __len__(self) -> int:
        """Return how many bytes are held."""
        return len(self._data)

    def add(self, data: bytes) -> None:
        """Take data. Raises: Refused, as soon as a prefix says that its message is too large."""
        self._data += data
        if len(self._data) >= PREFIX_SIZE:
            self._length()

    def next(self) -> tuple[bool, bytes] | None:
        """Return the next message, and whether it is compressed; None if it is not here yet. Raises: Refused."""
        data = self._data
        if len(data) < PREFIX_SIZE or len(data) < (end := PREFIX_SIZE + self._length()):
            return None
        compressed, message = bool(data[0]), bytes(memoryview(data)[PREFIX_SIZE:end])
        del data[:end]
        return compressed, message

    def _length(self) -> int:
        if self._data[0] > 1:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the prefix of a message is malformed")
        length = int.from_bytes(self._data[1:PREFIX_SIZE], "big")
        if length > self._max_size:
            raise _too_large(length, self._max_size)
        return length


def inflate(message: bytes, encoding: bytes | None, max_size: int) -> bytes:
    """Return a compressed message as it was, a step at a time, so that a bomb takes no more than `max_size` bytes.

    Raises: Refused.
    """
    if encoding is None:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a message is compressed and grpc-encoding is not set")
    inflating = zlib.decompressobj(_WINDOW_BITS[encoding])
    parts: list[bytes] = []
    size = 0
    try:
        while not inflating.eof:
            part = inflating.decompress(message, STEP_BYTES)
            message = inflating.unconsumed_tail
            if not part and not message:
                raise _corrupt()
            size += len(part)
            if size > max_size:
                raise _too_large(size, max_size)
            parts.append(part)
    except zlib.error as error:
        raise _corrupt() from error
    return b"".join(parts)


def _too_large(size: int, max_size: int) -> Refused:
    text = f"Received message larger than max ({size} vs. {max_size})"  # as grpcio's server says it
    return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)


def _corrupt() -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, "a compressed message can't be inflated")
