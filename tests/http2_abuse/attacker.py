"""A hostile client: frames made by hand, on connections that read or don't."""

import asyncio
import ssl
import struct
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

import ngh2

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 1, 1, 4, 8, 32
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
NO_ERROR, PROTOCOL_ERROR, CANCEL, ENHANCE_YOUR_CALM = 0, 1, 8, 11
LARGEST_WINDOW = 2**31 - 1
LARGEST_FRAME = 2**14
MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream: int, size: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


def reset(stream: int) -> bytes:
    """Return a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))


def literal(name: bytes, value: bytes, kind: int = 0) -> bytes:
    """Return a literal header in HPACK; `kind` 0x40 also adds it to the table."""
    return bytes([kind]) + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    """Return a string of HPACK without Huffman coding."""
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    size -= 127
    parts = [127]
    while size >= 128:
        parts.append(size % 128 + 128)
        size //= 128
    return bytes([*parts, size]) + text


def head(method: str, *more: tuple[bytes, bytes]) -> bytes:
    """Return the header block of a call of `/abuse/<method>`."""
    headers = [
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/abuse/{method}".encode())),
        *((b":authority", b"localhost"), (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more),
    ]
    return b"".join(literal(*header) for header in headers)


ECHO, LARGE, SLOW, STREAM, TALK = map(head, ("Echo", "Large", "Slow", "Stream", "Talk"))


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """Return a gRPC message with its prefix."""
    return bytes([compressed]) + len(body).to_bytes(4, "big") + body


def headers(stream: int, block: bytes = ECHO, *, end: bool = False) -> bytes:
    """Return a HEADERS frame."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def data(stream: int, body: bytes, *, end: bool = False) -> bytes:
    """Return a DATA frame."""
    return frame(DATA, END_STREAM if end else 0, stream, body)


def call(stream: int, block: bytes = ECHO, body: bytes = b"x") -> bytes:
    """Return a complete call with a small message."""
    return headers(stream, block) + data(stream, message(body), end=True)


def streams(count: int, first: int = 1) -> Iterable[int]:
    """Return `count` stream IDs."""
    return range(first, first + 2 * count, 2)


class Frame(NamedTuple):
    """A frame received from the server."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Peer(asyncio.Protocol):
    """A hostile connection: it sends what a test wants, and answers nothing."""

    transport: asyncio.Transport
    opened: ClassVar[set["Peer"]] = set()

    def __init__(self, *, reads: bool = True, keeps: bool = False) -> None:
        """Prepare; `reads` tells whether it reads, `keeps` whether it stores the input."""
        self._reads, self._keeps = reads, keeps
        self._received = bytearray()
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writable = asyncio.Event()
        self._writable.set()
        self.received = 0

    @classmethod
    async def connect(
        cls,
        port: int,
        first: bytes = MAGIC + settings(),
        *,
        reads: bool = True,
        keeps: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """Connect, and send the client's preface or something else."""
        loop = asyncio.get_running_loop()
        name = "localhost" if tls else None
        _, peer = await loop.create_connection(
            lambda: cls(reads=reads, keeps=keeps), "127.0.0.1", port, ssl=tls, server_hostname=name
        )
        peer.transport.write(first)
        return peer

    async def __aenter__(self) -> Self:
        """Return it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the connection."""
        self.drop()
        await self.closed()

    @classmethod
    def drop_all(cls) -> None:
        """Drop all connections."""
        for peer in list(cls.opened):
            peer.drop()

    def drop(self) -> None:
        """Drop the connection."""
        if not self.is_closed:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first bytes."""
        self.transport = transport  # type: ignore[assignment]
        self.opened.add(self)
        if not self._reads:
            self.transport.pause_reading()

    def data_received(self, received: bytes) -> None:
        """Handle input."""
        self.received += len(received)
        if self._keeps:
            self._received += received

    def connection_lost(self, error: Exception | None) -> None:
        """Record the end."""
        self._writable.set()
        self.opened.discard(self)
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """Stop sending."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Continue to send."""
        self._writable.set()

    async def send(self, *parts: bytes, seconds: float = 10) -> bool:
        """Send as fast as the server reads; return whether it read everything in that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for part in parts:
                    if self.is_closed:
                        return False
                    self.transport.write(part)
                    await self._writable.wait()
                    await asyncio.sleep(0)
                return not self.is_closed
        return False

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed the connection."""
        return self._closed.done()

    async def closed(self, seconds: float = 10) -> None:
        """Wait until the connection is closed. Raises: TimeoutError."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(self._closed)

    def frames(self) -> list[Frame]:
        """Return the received frames."""
        found, place = [], 0
        while (body := place + 9) <= len(self._received):
            end = body + int.from_bytes(self._received[place : place + 3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", self._received, place + 3)
            found.append(Frame(kind, flags, stream, bytes(self._received[body:end])))
            place = end
        return found

    def resets(self) -> int:
        """Return the number of streams reset by the server."""
        return sum(found.kind == RST_STREAM for found in self.frames())

    def goaways(self) -> list[int]:
        """Return the codes of the received GOAWAY frames."""
        return [int.from_bytes(found.payload[4:8], "big") for found in self.frames() if found.kind == GOAWAY]


class Uploader(Peer):
    """A connection that obeys flow control, so it can send more than a window."""

    def __init__(self, *, reads: bool = True, keeps: bool = False) -> None:
        """Prepare."""
        super().__init__(reads=reads, keeps=keeps)
        self._http2 = ngh2.Connection(ngh2.Role.CLIENT)
        self._http2.initiate_connection()

    def data_received(self, received: bytes) -> None:
        """Handle input, and send as much as the windows allow."""
        super().data_received(received)
        self._http2.receive_data(received)
        self._http2.events()
        self.flush()

    def upload(self, path: str, body: bytes) -> None:
        """Begin a call, and send part of a request."""
        about = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode())]
        about += [(b":authority", b"localhost"), (b"te", b"trailers"), (b"content-type", b"application/grpc")]
        self._http2.send_data(self._http2.send_request(about), body)
        self.flush()

    def flush(self) -> None:
        """Send as much as the windows allow."""
        self.transport.write(self._http2.data_to_send())

    @property
    def unsent(self) -> int:
        """The bytes that wait for the server's windows."""
        return self._http2.queued_body_size() + self.transport.get_write_buffer_size()
