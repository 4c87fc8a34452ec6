"""A caller that costs little: just enough HTTP/2 to keep calls of one method in flight on one connection.

grpc's own client in Python takes as much CPU a call as a server, so no two calls ever waited for the server at once.
"""

import asyncio
import struct
from collections.abc import Iterable, Iterator

from hpack import Decoder, Encoder

DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
SMALLEST_WINDOW, LARGEST_WINDOW = 2**16 - 1, 2**31 - 1
LARGEST_FRAME = 2**14

Headers = tuple[tuple[str, str], ...]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


class Body:
    """What of a request is still to be sent, and how much of it the server takes."""

    __slots__ = ("left", "window")

    def __init__(self, request: bytes, window: int) -> None:
        """Put gRPC's five bytes before the message."""
        self.left = b"\0" + len(request).to_bytes(4, "big") + request
        self.window = window


class Caller(asyncio.Protocol):
    """One connection. `trailers` and `reply` are the last call's."""

    transport: asyncio.Transport

    def __init__(self, port: int, method: str, metadata: Headers) -> None:
        """Prepare the headers, which are the same for each call."""
        target: Headers = ((":path", method), (":authority", f"127.0.0.1:{port}"))
        grpc: Headers = (("te", "trailers"), ("content-type", "application/grpc"))
        self._headers = ((":method", "POST"), (":scheme", "http"), *target, *grpc, *metadata)
        self._encoder, self._decoder = Encoder(), Decoder()
        self._received = bytearray()
        self._out = bytearray()
        self._window = self._initial_window = SMALLEST_WINDOW
        self._sending: dict[int, Body] = {}
        self._next_stream = 1
        self._under_way = 0
        self._requests: Iterator[bytes] = iter(())
        self._replies: dict[int, bytearray] = {}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.trailers: dict[str, str] = {}
        self.reply = b""

    @classmethod
    async def connect(cls, port: int, method: str, metadata: Headers = ()) -> "Caller":
        """Connect to a server on this machine."""
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(lambda: cls(port, method, metadata), "127.0.0.1", port)
        return caller

    async def run(self, requests: Iterable[bytes], in_flight: int) -> None:
        """Send all requests, so many at a time. Raises: RuntimeError if one is not answered OK."""
        self._requests = iter(requests)
        self._done = asyncio.get_running_loop().create_future()
        for _ in range(in_flight):
            self._call()
        self._send()
        await self._done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, with windows that never close."""
        self.transport = transport  # type: ignore[assignment]
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
        update = struct.pack(">I", LARGEST_WINDOW - SMALLEST_WINDOW)
        self._out += b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self._out += _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, update)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the calls under way."""
        self._fail(f"connection lost: {error}")

    def data_received(self, data: bytes) -> None:
        """Read the frames that are here, and send all that follows from them."""
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
        self._send()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._replies.setdefault(stream, bytearray()).extend(payload)
        elif kind == HEADERS:
            headers = {str(name): str(value) for name, value in self._decoder.decode(payload)}
            if flags & END_STREAM:
                self._end(stream, headers)
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += more
            elif stream in self._sending:
                self._sending[stream].window += more
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    for sending in self._sending.values():
                        sending.window += value - self._initial_window
                    self._initial_window = value
            self._out += _frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._out += _frame(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            self._fail(f"the server goes away: {payload!r}")

    def _call(self) -> None:
        """Begin the next call, if there is one."""
        if (request := next(self._requests, None)) is None:
            return
        self._under_way += 1
        self._out += _frame(HEADERS, END_HEADERS, self._next_stream, self._encoder.encode(self._headers))
        self._sending[self._next_stream] = Body(request, self._initial_window)
        self._next_stream += 2

    def _end(self, stream: int, trailers: dict[str, str]) -> None:
        """End a call; begin another."""
        self.trailers = trailers
        self.reply = bytes(self._replies.pop(stream, b"")[5:])
        self._under_way -= 1
        if trailers.get("grpc-status") != "0":
            self._fail(f"a call failed: {trailers}")
            return
        self._call()
        if not self._under_way and not self._done.done():
            self._done.set_result(None)

    def _send(self) -> None:
        """Send what is ready, as far as the server's windows allow."""
        for stream, body in list(self._sending.items()):
            while (size := min(len(body.left), LARGEST_FRAME, self._window, body.window)) > 0:
                part, body.left = body.left[:size], body.left[size:]
                self._out += _frame(DATA, 0 if body.left else END_STREAM, stream, part)
                self._window -= size
                body.window -= size
            if not body.left:
                del self._sending[stream]
        if self._out:
            self.transport.write(bytes(self._out))
            self._out.clear()

    def _fail(self, message: str) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(message))
