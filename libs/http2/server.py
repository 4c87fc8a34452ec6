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
from libs.http2.tls import Tls

LOOK_SECONDS = 1.0
LOOKED_AT_ONCE = 500  # connections
STALLED_SECONDS = 1.0  # after which a client that takes nothing may lose its replies to others
TURNS_SECONDS = 0.002  # given at once to the connections that have sent more than is taken at a time
BACKLOG = 1024
CLOSING_SECONDS = 1.0  # for a client to take the last bytes

log = logging.getLogger(__name__)


class _CallDetails(NamedTuple):
    """What a generic handler is asked with, as grpc.HandlerCallDetails has it."""

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
        """Prepare; nothing listens before `listen`. `share_port`: other processes may listen there, too.

        `explain` returns the metadata of a call that is refused before it reaches its handler.
        """
        self.explain = explain
        self.limits = limits or Limits()
        self._tls = tls
        self._tls_changed: tuple[int, ...] = ()
        self._share_port = share_port
        self.most_sending = self.limits.max_sending * 3 // 4
        self.most_receiving = self.limits.max_receiving * 3 // 4
        self.most_streams = BEGUN_AT_ONCE
        self.most_calls = self.limits.max_calls * 3 // 4
        self.inflating = ThreadPoolExecutor(1, "inflate")  # one at a time: a large message takes twice its size
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
        self._sockets: list[socket.socket] = []
        self._listeners: list[asyncio.Server] = []
        self._looking: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._closed = asyncio.Event()

    # Handlers

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add handlers that are asked for each call's method, in their order."""
        self._generic_handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service, as a generated `add_…Servicer_to_server` does."""
        self._methods |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def find(self, head: Head) -> Any:
        """Return the handler of a call. Raises: Refused."""
        details: Any = _CallDetails(head.path, head.metadata)
        for generic in self._generic_handlers:
            if (handler := generic.service(details)) is not None:
                return handler
        if (handler := self._methods.get(head.path)) is None:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return handler

    # Listening

    def listen(self, address: str) -> int:
        """Listen on `host:port`, `[ipv6]:port` or `unix:path`; return the port, 0 of a path.

        Raises: OSError if that can't be, or a file of the certificate can't be read.
        """
        if self._tls is not None:
            self._tls.context()
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
        self._sockets.append(listening)
        return port

    async def start(self) -> None:
        """Begin to serve."""
        await self._accept()
        self._looking = asyncio.create_task(self._look())

    async def _accept(self) -> None:
        """Accept connections, with the certificate that is there now."""
        loop, handshake_timeout, context = asyncio.get_running_loop(), None, None
        if self._tls is not None:
            self._tls_changed, handshake_timeout = self._tls.changed(), self.limits.handshake_timeout
            context = self._tls.context()
        before, self._listeners = self._listeners, []
        for listening in self._sockets:
            server = await loop.create_server(
                lambda: Connection(self),
                sock=listening.dup(),  # the socket itself stays open when this server is closed for another certificate
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=handshake_timeout,
            )
            self._listeners.append(server)
        for server in before:
            server.close()

    # Connections

    def add(self, connection: Connection) -> bool:
        """Take a connection; return False if there are too many, or the server stops."""
        if self._is_stopping or len(self._connections) >= self.limits.max_connections:
            self.counters.connections_refused += 1
            return False
        self._connections.add(connection)
        self.counters.connections_opened += 1
        self.counters.connections = len(self._connections)
        return True

    def remove(self, connection: Connection) -> bool:
        """Forget a connection that has ended; return whether it was taken."""
        if connection not in self._connections:
            return False
        self._connections.discard(connection)
        self.counters.connections = len(self._connections)
        if not self._connections:
            self._closed.set()
        return True

    def make_room(self, asking: Output, size: int) -> bool:
        """Return whether a reply has room that is not light, or comes when little is left.

        It may take the room of connections whose clients take nothing: they are closed.
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
        """Return whether a request has room that is not light, or comes when little is left.

        It may take the room of unfinished requests: those of the connection that holds most, if that is another.
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
        """Return whether connections wait for their turn."""
        return bool(self._unread)

    def receive_later(self, connection: Connection) -> None:
        """Give a connection its turn after those that wait already."""
        if not self._unread:
            asyncio.get_running_loop().call_soon(self._take_turns)
        self._unread.append(connection)

    def _take_turns(self) -> None:
        """Take what connections have sent, in turns, and then let the rest of the process have its turn."""
        end = time.perf_counter() + TURNS_SECONDS
        self.most_streams = self.counters.streams + BEGUN_AT_ONCE
        while self._unread and time.perf_counter() < end:
            connection = self._unread.popleft()
            if connection.receive_slices():
                self._unread.append(connection)
        if self._unread:
            asyncio.get_running_loop().call_soon(self._take_turns)

    async def _look(self) -> None:
        """See to all connections, and to the certificate, every second."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = asyncio.get_running_loop().time()
            for number, connection in enumerate(list(self._connections), 1):
                connection.check(now)
                if not number % LOOKED_AT_ONCE:
                    await asyncio.sleep(0)
            try:
                await self._read_certificate_again()
            except OSError as error:
                log.warning("the certificate can't be read, the last one stays in use: %s", error)

    async def _read_certificate_again(self) -> None:
        """Serve new connections with another certificate if its files have changed. Raises: OSError."""
        if self._tls is not None and self._tls.changed() != self._tls_changed:
            self._tls_changed = self._tls.changed()
            await self._accept()
            log.info("the certificate was read again")

    def retire(self) -> None:
        """Tell the clients to open new connections, elsewhere if they can; those that come here are served, too."""
        for connection in list(self._connections):
            connection.shut_down()

    async def stop(self, grace: float | None) -> None:
        """Take no new calls, let those under way end within `grace` seconds, and end the rest as UNAVAILABLE."""
        self._is_stopping = True  # a listener accepts what has come before it is closed
        for listener in self._listeners:
            listener.close()
        for listening in self._sockets:
            listening.close()
        self.retire()
        await self._all_closed(grace or 0)
        for connection in list(self._connections):
            connection.end(grpc.StatusCode.UNAVAILABLE, "the server has stopped")
        await self._all_closed(CLOSING_SECONDS)
        for connection in list(self._connections):
            connection.abort()
        await self._all_closed(CLOSING_SECONDS)
        if self._looking:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        self.inflating.shutdown(wait=False)

    async def _all_closed(self, seconds: float) -> None:
        """Wait until there is no connection, but not longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._connections:
                    self._closed.clear()
                    await self._closed.wait()

    async def wait_for_termination(self) -> None:
        """Wait for ever: the server ends when it is stopped."""
        await asyncio.Event().wait()
