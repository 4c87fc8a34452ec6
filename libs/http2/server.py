"""A gRPC server on libnghttp2 that takes what grpc.aio's server takes: generated servicers, health, reflection."""

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import ngh2

from libs.http2.connection import LIGHT_BYTES, STREAM_WINDOW, Connection
from libs.http2.deadlines import Deadlines
from libs.http2.framing import Head, Heads, Metadata, Refused
from libs.http2.limits import Counters, Limits
from libs.http2.output import BEGUN_AT_ONCE, Output
from libs.listener import BACKLOG, Listener, Tls

CHECK_SECONDS = 1.0
CHECKED_AT_ONCE = 500  # connections
STALLED_SECONDS = 1.0  # without progress, after which a client may lose its replies to make room for others
TURNS_SECONDS = 0.002  # in a row for the connections whose input waits
CLOSING_SECONDS = 1.0  # for a client to read the last bytes

log = logging.getLogger(__name__)


class _CallDetails(NamedTuple):
    """The argument of a generic handler, like grpc.HandlerCallDetails."""

    method: str
    invocation_metadata: Metadata


class Server:
    """The server of one process. Handlers are added before `start`."""

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler] = (),
        limits: Limits | None = None,
        *,
        tls: Tls | None = None,
        share_port: bool = False,
        explain: Callable[[Refused], Metadata] = attrgetter("trailers"),
    ) -> None:
        """Nothing listens before `listen`. With `share_port` other processes may listen on the port, too.

        `explain` returns the trailers of a call that is refused before it reaches its handler.
        """
        self.explain = explain
        self.limits = limits or Limits()
        self._share_port = share_port
        self.most_sending = self.limits.max_sending * 3 // 4
        self.most_receiving = self.limits.max_receiving * 3 // 4
        self.most_streams = BEGUN_AT_ONCE
        self.most_calls = self.limits.max_calls * 3 // 4
        self.inflating = ThreadPoolExecutor(1, "inflate")  # one thread: a large message takes twice its size
        self.counters = Counters()
        self.deadlines = Deadlines()
        self.heads = Heads(self.limits.max_metadata)
        self.configuration = ngh2.Configuration(
            auto_window_update=False,
            max_inbound_header_list_size=4 * self.limits.max_metadata,
            stream_reset_rate_limit=self.limits.resets,
            max_send_header_block_length=4 * self.limits.max_metadata,
        )
        self.http2_settings = {
            ngh2.Setting.MAX_CONCURRENT_STREAMS: self.limits.max_concurrent_streams,
            ngh2.Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            ngh2.Setting.MAX_HEADER_LIST_SIZE: self.limits.max_metadata,
        }
        self._generic_handlers = list(handlers)
        self._methods: dict[str, Any] = {}
        self._connections: set[Connection] = set()
        self._unread: deque[Connection] = deque()
        self._checking: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._closed = asyncio.Event()
        self._listener = Listener(lambda: Connection(self), tls, "h2", self.limits.handshake_timeout)

    # Handlers

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add handlers, which are asked in order for the method of each call."""
        self._generic_handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service, as a generated `add_…Servicer_to_server` does."""
        self._methods |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def find(self, head: Head) -> Any:
        """Return the handler of a call. Raises: Refused."""
        details: Any = _CallDetails(head.path, head.metadata)
        for generic in self._generic_handlers:
            try:
                handler = generic.service(details)
            except Exception as error:  # of this call; its connection has others
                log.error("a call has no handler: %s", head.path, exc_info=error)
                raise Refused(grpc.StatusCode.UNKNOWN, "the handler of the method failed") from error
            if handler is not None:
                return handler
        if (handler := self._methods.get(head.path)) is None:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return handler

    # Listening

    def listen(self, address: str) -> int:
        """Listen on `host:port`, `[ipv6]:port` or `unix:path`; return the port, 0 for a path.

        Raises: OSError, also if a file of the certificate can't be read.
        """
        self._listener.require_certificate()
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            with suppress(FileNotFoundError):
                path.unlink()
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(path))
            listening.listen(BACKLOG)
            port = 0
        else:
            host, _, number = address.rpartition(":")
            family, *_, at = socket.getaddrinfo(host.strip("[]"), int(number), type=socket.SOCK_STREAM)[0]
            both = family == socket.AF_INET6 and host.strip("[]") == "::"
            listening = socket.create_server(
                at, family=family, backlog=BACKLOG, reuse_port=self._share_port, dualstack_ipv6=both
            )
            port = listening.getsockname()[1]
        self._listener.add(listening)
        return port

    async def start(self) -> None:
        """Begin to serve."""
        await self._listener.accept()
        self._checking = asyncio.create_task(self._check())

    # Connections

    def add(self, connection: Connection) -> bool:
        """Add a connection; return False if there are too many, or the server stops."""
        if self._is_stopping or len(self._connections) >= self.limits.max_connections:
            self.counters.connections_refused += 1
            return False
        self._connections.add(connection)
        self.counters.connections_opened += 1
        self.counters.connections = len(self._connections)
        return True

    def remove(self, connection: Connection) -> bool:
        """Remove a connection that has ended; return whether it had been added."""
        if connection not in self._connections:
            return False
        self._connections.discard(connection)
        self.counters.connections = len(self._connections)
        if not self._connections:
            self._closed.set()
        return True

    def make_room(self, asking: Output, size: int) -> bool:
        """Return whether a reply has room when three quarters of MAX_SENDING are in use.

        A connection that holds little may use the last quarter. Connections of stalled clients are closed to make room.
        """
        counters, most = self.counters, self.most_sending
        if asking.sending + size <= LIGHT_BYTES:
            most = self.limits.max_sending
        if counters.sending + size > most:
            before = asyncio.get_running_loop().time() - STALLED_SECONDS
            stalled = [connection for connection in self._connections if connection.is_stalled(before)]
            for connection in sorted(stalled, key=lambda each: each.stalled_since):
                connection.time_out()
                if counters.sending + size <= most:
                    break
        return counters.sending + size <= most

    def make_request_room(self, asking: Connection, size: int) -> bool:
        """Return whether a request has room when three quarters of MAX_RECEIVING are in use.

        A connection that holds little may use the last quarter. Unfinished requests of the connection that holds most,
        unless that is this one, are dropped to make room.
        """
        counters, most = self.counters, self.most_receiving
        if asking.receiving + size <= LIGHT_BYTES:
            most = self.limits.max_receiving
        while counters.receiving + size > most:
            largest = max(self._connections, key=attrgetter("receiving"))
            if largest.receiving <= asking.receiving + size or not largest.drop_request():
                return False
        return True

    def has_unread(self) -> bool:
        """Return whether input of connections waits."""
        return bool(self._unread)

    def receive_later(self, connection: Connection) -> None:
        """Handle the input of a connection after that of the connections that wait already."""
        if not self._unread:
            asyncio.get_running_loop().call_soon(self._receive_in_turns)
        self._unread.append(connection)

    def _receive_in_turns(self) -> None:
        """Handle the input of connections in turns, for 2 ms; then let other tasks run."""
        end = time.perf_counter() + TURNS_SECONDS
        self.most_streams = self.counters.streams + BEGUN_AT_ONCE
        while self._unread and time.perf_counter() < end:
            connection = self._unread.popleft()
            if connection.receive_slices():
                self._unread.append(connection)
        if self._unread:
            asyncio.get_running_loop().call_soon(self._receive_in_turns)

    async def _check(self) -> None:
        """Check all connections, and whether the certificate has changed, every second."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = asyncio.get_running_loop().time()
            for number, connection in enumerate(list(self._connections), 1):
                connection.check(now)
                if not number % CHECKED_AT_ONCE:
                    await asyncio.sleep(0)
            await self._listener.follow()

    def retire(self) -> None:
        """Send GOAWAY on all connections. New connections are still served."""
        for connection in list(self._connections):
            connection.shut_down()

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls, let those under way end within `grace` seconds, and end the rest as UNAVAILABLE."""
        self._is_stopping = True  # a listener may still accept connections that arrived before it was closed
        self._listener.close()
        self.retire()
        await self._all_closed(grace or 0)
        for connection in list(self._connections):
            connection.end(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
        await self._all_closed(CLOSING_SECONDS)
        for connection in list(self._connections):
            connection.abort()
        await self._all_closed(CLOSING_SECONDS)
        if self._checking:
            self._checking.cancel()
            await asyncio.wait([self._checking])
        self.inflating.shutdown(wait=False)

    async def _all_closed(self, seconds: float) -> None:
        """Wait until there is no connection, for `seconds` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._connections:
                    self._closed.clear()
                    await self._closed.wait()

    async def wait_for_termination(self) -> None:
        """Wait until canceled."""
        await asyncio.Event().wait()
