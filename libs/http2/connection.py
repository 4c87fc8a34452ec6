"""One HTTP/2 connection: passes bytes to libnghttp2, and its events to calls."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from itertools import islice
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import grpc
import ngh2

from libs.http2.call import Call
from libs.http2.framing import RESPONSE, NotGrpc, Refused, overloaded, status_trailers, write_metadata
from libs.http2.lifetime import Lifetime
from libs.http2.limits import TokenBucket
from libs.http2.output import Output
from libs.http2.tls import auth_context

if TYPE_CHECKING:
    from libs.http2.server import Server

# A connection's input is handled in slices, so that no client holds up the others. A slice has at most some 130 of the
# smallest requests. While no request begins slices are larger: an upload of 4 MB takes 0.9 of the time.
SLICE_BYTES = 4096
UPLOAD_SLICE_BYTES = 16 * 1024
UNREAD_BYTES = 64 * 1024  # input that waits for its turn; if there is more, the socket is not read
MOST_BEGUN = 64  # requests, or
TURN_SECONDS = 0.001  # after which the other connections have their turn
STREAM_WINDOW = 4 * 1024 * 1024  # bytes of a request that a client may send before they are acknowledged
CONNECTION_WINDOW = 16 * 1024 * 1024
LIGHT_BYTES = 64 * 1024  # that each connection may hold, and
LIGHT_CALLS = 16  # calls that it may have, even when others have used three quarters of a limit
LINGER_SECONDS = 1.0  # for a client to read why its connection has ended

_CONTROL_FRAMES = frozenset(
    (
        *(ngh2.SettingsReceived, ngh2.PingReceived, ngh2.PingAcknowledged),
        *(ngh2.PriorityUpdateReceived, ngh2.GoAwayReceived),
    )
)
# The codes with which libnghttp2 ends a connection that resets too many streams or breaks too many rules.
_FLOOD_CODES = frozenset((ngh2.ErrorCode.INTERNAL_ERROR, ngh2.ErrorCode.ENHANCE_YOUR_CALM))


class Connection(Output):
    """A connection of a client; times are the event loop's."""

    _lifetime: Lifetime
    _control_frames: TokenBucket

    def __init__(self, server: "Server") -> None:
        super().__init__(server)
        self.limits = server.limits
        self.deadlines = server.deadlines
        self.explain = server.explain
        self.peer = ""
        self.state: dict[str, Any] = {}
        self.receiving = 0
        self._calls: dict[int, Call] = {}
        self._unfinished: dict[int, float] = {}
        self._unread = b""
        self._has_goaway = False
        self._ended: float | None = None
        self._auth_context: Mapping[str, Iterable[bytes]] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection, unless there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        now = self.stalled_since = self._loop.time()
        self._lifetime = Lifetime(now)
        self._control_frames = TokenBucket(*self.limits.control_frames, now)
        self.peer = _peer(transport.get_extra_info("peername"))
        tls = transport.get_extra_info("ssl_object")
        if (tls is not None and tls.selected_alpn_protocol() != "h2") or not self._server.add(self):
            self._ended = now
            self._transport.abort()
            return
        self._http2 = ngh2.Connection(ngh2.Role.SERVER, self._server.configuration)
        self._http2.initiate_connection(self._server.http2_settings)
        self._http2.set_local_window_size(CONNECTION_WINDOW)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """End every call."""
        if not self._server.remove(self):
            return
        self._ended = self._loop.time()
        self._unread = b""
        self._drop_output()
        self._drop_waiting()
        self._close_calls()
        self._wake_writers()

    def _close_calls(self) -> None:
        """Close the calls of a lost connection, some at a time: their handlers all end in the next tick."""
        for stream_id in list(islice(self._calls, MOST_BEGUN)):
            self._calls.pop(stream_id).close()
            self.counters.calls -= 1
        if self._calls:
            self._loop.call_soon(self._close_calls)

    def data_received(self, data: bytes) -> None:
        """Handle input at once if it is small, else in turn with other connections."""
        self._lifetime.last_heard = self._loop.time()
        if self._ended is not None:
            return
        if not self._unread and len(data) <= SLICE_BYTES and self.counters.streams < self._server.most_streams:
            self._receive(data)
            return
        if not self._unread and not self._is_paused:
            self._server.receive_later(self)
        self._unread += data
        if len(self._unread) > UNREAD_BYTES:  # libuv would read up to 32 times in a row
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Stop writing: the socket is full. Stop reading, too: more requests would only add more output."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Continue to write and read."""
        self._is_paused = False
        self._flush()
        self._resume_reading()
        if self._unread:
            self._server.receive_later(self)

    # Input

    def receive_slices(self) -> bool:
        """Handle slices until it is the other connections' turn; return whether there are more."""
        begun, end, place = self.counters.streams, time.perf_counter() + TURN_SECONDS, 0
        while place < len(self._unread) and not self._is_paused and self._ended is None:
            size = SLICE_BYTES if self.counters.streams > begun else UPLOAD_SLICE_BYTES
            self._receive(self._unread[place : place + size])
            place += size
            if self.counters.streams - begun >= MOST_BEGUN or time.perf_counter() > end:
                break
        self._unread = self._unread[place:] if self._ended is None else b""
        self._resume_reading()
        return bool(self._unread) and not self._is_paused

    def _resume_reading(self) -> None:
        """Read from the socket again, if no input waits."""
        if self._is_paused or self._transport.is_closing():
            return
        if not self._unread:
            self._transport.resume_reading()

    def _receive(self, data: bytes) -> None:
        try:
            self._http2.receive_data(data)
        except (ngh2.NGH2Error, ValueError) as error:  # the connection can't be used any more
            self._count_end(is_flood=isinstance(error, ngh2.DenialOfServiceError))
            self._transport.abort()
            return
        self._handle_events()
        if self._http2.want_write:
            self.flush_soon()

    def _count_end(self, *, is_flood: bool) -> None:
        """Count a connection that ends because of its client."""
        if self._ended is None:
            self._ended = self._loop.time()
            if is_flood:
                self.counters.floods += 1
            else:
                self.counters.protocol_errors += 1

    def _handle_events(self) -> None:
        event: Any
        for event in self._http2.events():
            kind = type(event)
            if kind is ngh2.RequestReceived:
                self._begin(event)
            elif kind is ngh2.DataReceived:
                if (call := self._calls.get(event.stream_id)) is not None:
                    call.receive(event.data, event.end_stream)
                else:
                    self.acknowledge(event.stream_id, len(event.data))
                if not event.data and not event.end_stream:
                    self._take_control_frame()
            elif kind is ngh2.StreamClosed:
                if (call := self._calls.pop(event.stream_id, None)) is not None:
                    self.counters.calls -= 1
                    call.close()
                    if self._waiting and (run := self._waiting.pop(call, None)) is not None:
                        run.close()
            elif kind is ngh2.TrailersReceived:
                if (call := self._calls.get(event.stream_id)) is not None:
                    call.receive(b"", True)
            elif kind is ngh2.StreamReset:
                self.counters.streams_reset += 1
                if self.sending:  # of its replies, perhaps
                    self.flush_soon()
            elif kind is ngh2.ConnectionClosed:
                self._close(event.error_code)
            elif kind in _CONTROL_FRAMES:
                self._lifetime.has_settings = True
                self._take_control_frame()
                if kind is ngh2.PingAcknowledged:
                    self._lifetime.ping_acknowledged(self, event.opaque_data)
                elif kind is ngh2.GoAwayReceived:
                    self._has_goaway = True

    def _take_control_frame(self) -> None:
        """Count a frame that costs work and carries no request."""
        if self._ended is None and not self._control_frames.take(self._loop.time()):
            self._count_end(is_flood=True)
            self._http2.terminate_connection(ngh2.ErrorCode.ENHANCE_YOUR_CALM)

    def _close(self, error_code: int) -> None:
        """Close the connection, which libnghttp2 has ended: because of its client unless the code is NO_ERROR."""
        if not error_code or self._has_goaway:
            self._end()
            return
        self._count_end(is_flood=error_code in _FLOOD_CODES)
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        # Closing a socket with unread input resets it, and the client would not read the reason.
        self._transport.write_eof()
        self._unread = b""
        self._drop_output()
        self._close_calls()
        self._resume_reading()

    def _end(self) -> None:
        """Close the connection when its output is sent."""
        if self._ended is None:
            self._ended = self._loop.time()
        self._transport.close()

    def _begin(self, event: Any) -> None:
        stream_id, headers = event.stream_id, event.headers
        self.counters.streams += 1
        try:
            head = self._server.heads.read(headers)
            handler = self._server.find(head)
            if self.counters.calls >= self._server.most_calls:
                self._require_room_for_call()
        except NotGrpc as error:
            self.counters.calls_invalid += 1
            self.send_only(stream_id, [(b":status", error.status)], reset=not event.end_stream)
        except Refused as refused:
            self.count_refused(refused)
            trailers = status_trailers(refused.code.value[0], refused.details) + write_metadata(self.explain(refused))
            self.send_only(stream_id, [*RESPONSE, *trailers], reset=not event.end_stream)
        else:
            self.counters.calls += 1
            call = self._calls[stream_id] = Call(self, stream_id, head, handler)
            call.begin(event.end_stream)

    def count_refused(self, refused: Refused) -> None:
        """Count an invalid or too large request; calls refused for lack of room are counted elsewhere."""
        if refused.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.counters.calls_invalid += 1
        elif not refused.trailers:
            self.counters.requests_too_large += 1

    def _require_room_for_call(self) -> None:
        """Refuse a call when there are too many, unless its connection has few. Raises: Refused."""
        if len(self._calls) >= LIGHT_CALLS or self.counters.calls >= self.limits.max_calls:
            self.counters.calls_refused += 1
            raise overloaded("the server has too many calls under way")

    def take_room(self, size: int) -> bool:
        """Reserve memory for a request; return False if the process may hold no more."""
        counters = self.counters
        if counters.receiving + size > self._server.most_receiving and not self._server.make_request_room(self, size):
            counters.requests_refused += 1
            return False
        self.receiving += size
        counters.receiving += size
        return True

    def release_room(self, size: int) -> None:
        """Release what `take_room` reserved."""
        self.receiving -= size
        self.counters.receiving -= size

    def drop_request(self) -> bool:
        """Refuse the largest incomplete request; return False if there is none."""
        call = max(self._calls.values(), key=attrgetter("unfinished"), default=None)
        if call is None or not call.unfinished:
            return False
        self.counters.requests_refused += 1
        call.drop_request()
        return True

    @property
    def inflating(self) -> Executor:
        """The thread in which large messages are inflated."""
        return self._server.inflating

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Extend the client's window by `size` bytes."""
        try:
            self._http2.acknowledge_received_data(size, stream_id)
        except ngh2.NGH2Error:  # the connection is about to end
            pass

    # The end

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the properties of the client's certificate; none without one."""
        if self._auth_context is None:
            self._auth_context = auth_context(self._transport.get_extra_info("ssl_object"))
        return self._auth_context

    def check(self, now: float) -> None:
        """End what has taken too long: requests, the connection itself. The server calls it every second."""
        if self._ended is not None:
            if now - self._ended > LINGER_SECONDS:
                self._transport.close()
            if now - self._ended > self.limits.send_timeout:
                self._transport.abort()
            return
        if self.sending or self._is_paused:
            self._update_sending()
        if self._calls:
            self._lifetime.last_active = now
            self._end_late_requests(now)
        if self._writers:
            self._wake_writers()
        self._lifetime.check(self, now)

    def _end_late_requests(self, now: float) -> None:
        """End the calls whose requests are not received in time."""
        seen = self._unfinished
        self._unfinished = {number: seen.get(number, now) for number, call in self._calls.items() if call.is_late(inf)}
        for number, since in self._unfinished.items():
            if (call := self._calls[number]).is_late(now - since):
                call.time_out()

    def shut_down(self) -> None:
        """Send GOAWAY; the connection is closed when the streams that are open have ended."""
        if self._ended is None:
            self._lifetime.shut_down(self, self._loop.time())

    def send_goaway(self, ping: bytes | None = None) -> None:
        """Send the last GOAWAY, or with `ping` the first, which allows more streams, and a ping."""
        if ping is None:
            self._http2.send_goaway()
        else:
            self._http2.send_shutdown_notice()
            self._http2.ping(ping)
        self.flush_soon()

    def ping(self, data: bytes) -> None:
        """Send a ping."""
        self._http2.ping(data)
        self.flush_soon()

    def time_out(self) -> None:
        """Close the connection of a client that does not respond or does not take its replies."""
        self.counters.connections_timed_out += 1
        self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self._ended = self._loop.time()
        self._transport.abort()
        self._drop_output()

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """Answer every call with a status, and close."""
        for call in list(self._calls.values()):
            call.end_with(code, details)
        self._flush()
        self._end()


def _peer(name: object) -> str:
    """Return an address in gRPC's notation."""
    if not isinstance(name, tuple):
        return "unix:"
    host, port = name[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
