"""A load client: unary gRPC calls over HTTP/2 on ngh2, with callbacks, fast enough for all servers measured here.

grpcio's own client takes as much CPU per call as its server, so it would be the bottleneck.
"""

from __future__ import annotations  # array is generic in the .pyi only

import asyncio
import gc
import math
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import NamedTuple, Self

import grpc
from ngh2 import (
    Configuration,
    Connection,
    DataReceived,
    NGH2Error,
    ResponseReceived,
    Role,
    StreamClosed,
    TrailersReceived,
)

HOST = "127.0.0.1"  # fixed, because it loads servers on this machine
INITIAL_WINDOW_SIZE = 4  # the id of the setting
LARGEST_WINDOW = 2**31 - 1
CONFIGURATION = Configuration(peer_max_concurrent_streams=1000)
STATUSES = {b"%d" % code.value[0]: code.name for code in grpc.StatusCode}

Headers = list[tuple[bytes, bytes]]
Metadata = tuple[tuple[str, str], ...]


class Call(NamedTuple):
    """A call to send: the framed request, headers that many calls share, and the index of its server."""

    headers: Headers
    body: bytes
    server: int = 0


def headers_of(path: str, metadata: Metadata = ()) -> Headers:
    """Return the headers of every call of a method; `path` is `/package.Service/Method`."""
    return [
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost")),
        *((b"te", b"trailers"), (b"content-type", b"application/grpc")),
        *((name.encode(), value.encode()) for name, value in metadata),
    ]


def framed(message: bytes) -> bytes:
    """Return a message with gRPC's prefix of five bytes: uncompressed, and its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def calls_of(path: str, requests: Iterable[bytes], metadata: Metadata = ()) -> list[Call]:
    """Return a call of one method per request."""
    headers = headers_of(path, metadata)
    return [Call(headers, framed(request)) for request in requests]


@dataclass
class Result:
    """The outcome of a run.

    `statuses` counts the calls by status, or by HTTP/2 error where there was none; `sources` counts by `x-cache`.
    Latencies are in s, in no particular order. `replies` has the messages of the replies, if requested.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    latencies: array[float] = field(default_factory=lambda: array("d"))
    replies: list[bytes] = field(default_factory=list)
    first_error: str = ""
    seconds: float = 0.0

    @property
    def calls(self) -> int:
        """The number of ended calls."""
        return self.statuses.total()

    @property
    def errors(self) -> int:
        """The number of calls that did not end with OK."""
        return self.calls - self.statuses["OK"]

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.seconds

    def percentile_us(self, share: float) -> float:
        """Return a percentile of the latency, in us; share 0.5 is the median."""
        ordered = sorted(self.latencies)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1e6 if ordered else math.nan


class CallsFailed(Exception):
    """Calls ended with a status other than OK."""


class Client:
    """Connections to servers on this machine. `result` is that of the current or last run."""

    def __init__(self) -> None:
        """Don't connect yet."""
        self.result = Result()
        self.keep_replies = False
        self._pools: list[list[_Peer]] = []
        self._peers: list[_Peer] = []
        self._turn = 0
        self._calls: Iterator[Call] = iter(())
        self._under_way = 0
        self._done: asyncio.Future[None] | None = None
        self._unsent: list[_Peer] = []

    @classmethod
    async def connect(cls, ports: Sequence[int], connections: int = 1, tls: SSLContext | None = None) -> Self:
        """Open `connections` to each port, with or without TLS; `Call.server` is the index of a port."""
        client, loop = cls(), asyncio.get_running_loop()
        for port in ports:
            pool: list[_Peer] = []
            for _ in range(connections):
                _, peer = await loop.create_connection(lambda pool=pool: _Peer(client, pool), HOST, port, ssl=tls)
                pool.append(peer)
            client._pools.append(pool)
            client._peers += pool
        return client

    async def run(
        self,
        calls: Iterable[Call],
        in_flight: int = 1,
        *,
        seconds: float = 60,
        keep_replies: bool = False,
        check: bool = True,
    ) -> Result:
        """Send the calls, `in_flight` at a time, none after `seconds`; return when all have ended.

        Raises: CallsFailed if one did not end with OK, unless `check` is false; ConnectionError if no connection to a
        server is left; TimeoutError if calls have not ended 30 s after the last could be sent.
        """
        loop = asyncio.get_running_loop()
        self.result = result = Result()
        self.keep_replies = keep_replies
        self._calls, self._done = iter(calls), loop.create_future()
        stop = loop.call_later(seconds, self._stop)
        collects = gc.isenabled()
        gc.disable()  # a collection during the run would be counted as latency
        began = time.perf_counter()
        try:
            for _ in range(in_flight):
                self.next_call()
            self.flush()
            if self._under_way:
                async with asyncio.timeout(seconds + 30):
                    await self._done
        finally:
            stop.cancel()
            if collects:
                gc.enable()
        result.seconds = time.perf_counter() - began
        if check and result.errors:
            raise CallsFailed(f"{dict(result.statuses)}, the first: {result.first_error}")
        return result

    def close(self) -> None:
        """Close the connections."""
        for peer in self._peers:
            peer.transport.close()

    def _stop(self) -> None:
        self._calls = iter(())

    def next_call(self, ended: _Peer | None = None) -> None:
        """Queue the next call, if any; preferably on the connection whose call has ended."""
        if (call := next(self._calls, None)) is None:
            return
        pool = self._pools[call.server]
        if not pool:
            self._calls = iter(())
            self._fail(ConnectionError("the server has closed every connection"))
            return
        if ended is None or ended.pool is not pool or ended.leaving:
            self._turn += 1
            ended = pool[self._turn % len(pool)]
        self._under_way += 1
        if not ended.fresh:
            self._unsent.append(ended)
        ended.begin(call)

    def end(self, peer: _Peer, status: str, latency: float) -> None:
        """Count an ended call, and begin another."""
        self.result.statuses[status] += 1
        self.result.latencies.append(latency)
        self._under_way -= 1
        self.next_call(peer)
        if not self._under_way and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def flush(self) -> None:
        """Send the queued calls, in one write per connection."""
        unsent, self._unsent = self._unsent, []
        for peer in unsent:
            peer.send()

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class _Peer(asyncio.Protocol):
    """One connection. `fresh` are the streams begun since the last write."""

    transport: asyncio.Transport

    def __init__(self, client: Client, pool: list[_Peer]) -> None:
        self.client, self.pool = client, pool
        self.leaving = False
        self.fresh: list[int] = []
        self._h2 = Connection(Role.CLIENT, CONFIGURATION)
        self._began: dict[int, float] = {}
        self._bodies: dict[int, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, with windows that never close."""
        self.transport = transport  # type: ignore[assignment]
        self._h2.initiate_connection({INITIAL_WINDOW_SIZE: LARGEST_WINDOW})
        self._h2.set_local_window_size(LARGEST_WINDOW)
        self.transport.write(self._h2.data_to_send())

    def begin(self, call: Call) -> None:
        """Queue a call."""
        h2 = self._h2
        stream = h2.send_request(call[0])
        h2.send_data(stream, call[1], end_stream=True)
        self.fresh.append(stream)

    def send(self) -> None:
        """Send the queued calls; their latency counts from now."""
        self._began.update(dict.fromkeys(self.fresh, time.perf_counter()))
        self.fresh.clear()
        if data := self._h2.data_to_send():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """End the answered calls, and send the next ones."""
        h2, keep, now = self._h2, self.client.keep_replies, time.perf_counter()
        try:
            h2.receive_data(data)
        except NGH2Error:
            self.transport.abort()
            return
        if not h2.can_send_request:  # a call begun for an event before the GOAWAY would be refused
            self._leave()
        for event in h2.events():
            if isinstance(event, TrailersReceived):
                self._end(event, now)
            elif isinstance(event, DataReceived):
                if keep:
                    self._bodies[event.stream_id] = self._bodies.get(event.stream_id, b"") + event.data
            elif isinstance(event, StreamClosed):
                if event.stream_id in self._began:  # without trailers: it was reset
                    self._fail(event.stream_id, f"RESET {event.error_code}", now)
            elif isinstance(event, ResponseReceived):
                if event.end_stream:
                    self._end(event, now)
        self.client.flush()
        if h2.want_write:  # acknowledgements of settings and pings
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the calls under way."""
        self._leave()
        now = time.perf_counter()
        for stream in [*self._began, *self.fresh]:
            self._began.setdefault(stream, now)
            self._fail(stream, "CONNECTION LOST", now)
        self.client.flush()

    def _leave(self) -> None:
        """Take no more calls."""
        self.leaving = True
        if self in self.pool:
            self.pool.remove(self)

    def _end(self, event: TrailersReceived | ResponseReceived, now: float) -> None:
        stream, client, status = event.stream_id, self.client, b""
        for name, value in event.headers:
            if name == b"grpc-status":
                status = value
            elif name == b"x-cache":
                client.result.sources[value.decode()] += 1
        if status != b"0" and not client.result.first_error:
            client.result.first_error = repr(event.headers)
        if client.keep_replies:
            client.result.replies.append(self._bodies.pop(stream, b"")[5:])
        client.end(self, STATUSES.get(status, "NO STATUS"), now - self._began.pop(stream))

    def _fail(self, stream: int, status: str, now: float) -> None:
        """End a call without a status."""
        self._bodies.pop(stream, None)
        self.client.result.first_error = self.client.result.first_error or status
        self.client.end(self, status, now - self._began.pop(stream))
