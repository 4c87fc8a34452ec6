"""A client that sends arbitrary requests: any headers, any bytes as the body, in any frames."""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpack import Decoder, Encoder

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_FRAME = 2**14
WINDOW = 2**31 - 1

Headers = Sequence[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def message(body: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """Return a gRPC message; its prefix may be wrong."""
    return bytes([flag]) + (len(body) if length is None else length).to_bytes(4, "big") + body


def headers(path: bytes, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Return the headers of a valid request."""
    pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"test")]
    return [*pseudo, (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]


@dataclass(frozen=True)
class Request:
    """A request: `frames` are the payloads of its DATA frames, `end` is what ends the stream."""

    headers: Headers
    frames: tuple[bytes, ...] = ()
    end: str = "data"
    """`data`: the last frame, or the headers if there is none; `empty`: an empty frame after it; `trailers`."""


@dataclass
class Answer:
    """An answer; `reset` is the code of a RST_STREAM, None if there was none."""

    heads: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    reset: int | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def head(self) -> dict[bytes, bytes]:
        """The headers."""
        return dict(self.heads[0]) if self.heads else {}

    @property
    def trailers(self) -> dict[bytes, bytes]:
        """The trailers, or the headers if there is nothing else."""
        return dict(self.heads[-1]) if self.heads else {}

    @property
    def status(self) -> int | None:
        """The status of gRPC."""
        status = self.trailers.get(b"grpc-status")
        return None if status is None else int(status)


class Raw(asyncio.Protocol):
    """A connection."""

    def __init__(self, window: int = WINDOW) -> None:
        """`window` is the initial window of each stream."""
        self._receive_window = window
        self.goaways: list[tuple[int, int]] = []
        self.settings: dict[int, int] = {}
        self.debug = b""
        self.answers_pings = True
        self._pings: list[bytes] = []
        self.lost = asyncio.Event()
        self._changed = asyncio.Event()
        self._encoder, self._decoder = Encoder(), Decoder()
        self._received = bytearray()
        self._next = 1
        self._answers: dict[int, Answer] = {}
        self._window = 2**16 - 1
        self._windows: dict[int, int] = {}

    @classmethod
    async def connect(cls, port: int, window: int = WINDOW) -> "Raw":
        """Connect to a server on this machine."""
        loop = asyncio.get_running_loop()
        _, raw = await loop.create_connection(lambda: cls(window), "127.0.0.1", port)
        return raw

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; the window of the connection never closes."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, self._receive_window)))
        self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW - 2**16 + 1)))

    def connection_lost(self, error: Exception | None) -> None:
        """End all requests."""
        self.lost.set()
        self._tell()
        for answer in self._answers.values():
            answer.done.set()

    def send(self, data: bytes) -> None:
        """Send raw bytes. Raises: ConnectionError."""
        if self.lost.is_set():
            raise ConnectionError(f"the connection is lost: {self.goaways} {self.debug!r}")
        self.transport.write(data)

    def close(self) -> None:
        """Close the connection."""
        self.transport.abort()

    async def call(self, request: Request) -> Answer:
        """Send a request; return the answer once the stream, or the connection, has ended."""
        _, answer = self.begin(request.headers, end=request.end == "data" and not request.frames)
        stream = self._next - 2
        frames = (*request.frames, b"") if request.end == "empty" else request.frames
        for number, payload in enumerate(frames, 1):
            end = number == len(frames) and request.end != "trailers"
            for place in range(0, len(payload) or 1, LARGEST_FRAME):
                part = payload[place : place + LARGEST_FRAME]
                while not answer.done.is_set() and len(part) > min(self._window, self._windows[stream]):
                    await self.change()
                if answer.done.is_set():
                    return answer
                self.data(stream, part, end=end and place + LARGEST_FRAME >= len(payload))
        if request.end == "trailers":
            block = self._encoder.encode([(b"x-trailer", b"1")])
            self.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
        await answer.done.wait()
        return answer

    def begin(self, headers: Headers, *, end: bool) -> tuple[int, Answer]:
        """Open a stream."""
        stream, self._next = self._next, self._next + 2
        answer = self._answers[stream] = Answer()
        self._windows[stream] = self.settings.get(4, 2**16 - 1)
        block, kind, flags = self._encoder.encode(headers), HEADERS, END_STREAM if end else 0
        while len(block) > LARGEST_FRAME:
            self.send(frame(kind, flags, stream, block[:LARGEST_FRAME]))
            block, kind, flags = block[LARGEST_FRAME:], CONTINUATION, 0
        self.send(frame(kind, flags | END_HEADERS, stream, block))
        return stream, answer

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """Send a frame of a stream, regardless of its window."""
        self._window -= len(payload)
        self._windows[stream] -= len(payload)
        self.send(frame(DATA, END_STREAM if end else 0, stream, payload))

    def open_windows(self) -> None:
        """Open the window of a stream completely."""
        self.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WINDOW)))

    def answer_pings(self) -> None:
        """Answer the pings received."""
        for payload in self._pings:
            self.send(frame(PING, ACK, 0, payload))
        self._pings.clear()

    def reset(self, stream: int, code: int = 8) -> None:
        """Reset a stream."""
        self.send(frame(RST_STREAM, 0, stream, struct.pack(">I", code)))

    async def change(self) -> None:
        """Wait for any frame."""
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Read frames."""
        self._received += data
        place = 0
        while (body := place + 9) <= len(self._received):
            end = body + int.from_bytes(self._received[place : place + 3], "big")
            if end > len(self._received):
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._received, place + 3)
            self._take(kind, flags, stream, bytes(self._received[body:end]))
            place = end
        del self._received[:place]
        self._tell()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        answer = self._answers.get(stream)
        if kind == HEADERS:
            block = self._decoder.decode(payload, raw=True)
            if answer is not None:
                answer.heads.append([(bytes(name), bytes(value)) for name, value in block])
        elif kind == DATA and answer is not None:
            answer.body += payload
        elif kind == RST_STREAM and answer is not None:
            answer.reset = int.from_bytes(payload, "big")
            answer.done.set()
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream:
                self._windows[stream] = self._windows.get(stream, 0) + more
            else:
                self._window += more
        elif kind == SETTINGS and not flags & ACK:
            before = self.settings.get(4, 2**16 - 1)
            self.settings |= dict(struct.iter_unpack(">HI", payload))
            for each in self._windows:
                self._windows[each] += self.settings.get(4, 2**16 - 1) - before
            self.send(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self._pings.append(payload)
            if self.answers_pings:
                self.answer_pings()
        elif kind == GOAWAY:
            last, code = struct.unpack_from(">II", payload)
            self.goaways.append((last, code))
            self.debug = payload[8:]
        if kind in (DATA, HEADERS) and flags & END_STREAM and answer is not None:
            answer.done.set()
