"""One HTTP/2 connection: libnghttp2 speaks the protocol, this moves its bytes and its events."""

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from itertools import islice
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import grpc
import ngh2

from libs.http2.call import Call
from libs.http2.framing import (
    PREFIX_SIZE,
    RESPONSE,
    UNFRAMED_BYTES,
    Headers,
    NotGrpc,
    Refused,
    frame,
    prefix,
    status_trailers,
    write_metadata,
)
from libs.http2.limits import TokenBucket
from libs.http2.tls import auth_context

if TYPE_CHECKING:
    from libs.http2.server import Server

SLICE_BYTES = 4096  # read at once: some 130 of the smallest requests, so that no client holds up the others,
UPLOAD_SLICE_BYTES = 16 * 1024  # and more while no request begins: an upload of 4 MB takes 0.9 of the time
UNREAD_BYTES = 64 * 1024  # beyond which a connection is read no further until these are taken
MOST_BEGUN = 64  # requests of one read after which the other connections have their turn,
BEGUN_AT_ONCE = 256  # requests that all connections together may begin before what follows from them is done
TURN_SECONDS = 0.001  # as they have after this time
OUTPUT_BYTES = 256 * 1024  # given to the socket at a time,
OUTPUTS_AT_ONCE = 3  # and so often before the other connections have their turn
SENDING_BYTES = 1024 * 1024  # of replies that the client has not taken; beyond it no request of it is begun
STREAM_WINDOW = 4 * 1024 * 1024  # bytes of a request that a client may send unasked
CONNECTION_WINDOW = 16 * 1024 * 1024
LIGHT_BYTES = 64 * 1024  # that a connection may hold even of the last quarter of what there is,
LIGHT_CALLS = 16  # and as many calls
PROGRESS_BYTES = 16 * 1024  # a client that takes less in a time takes nothing

LINGER_SECONDS = 1.0  # for a client to read why its connection has ended
NOTICE_SECONDS = 1.0  # after which a client that does not answer the ping has had its notice
AGE_SPREAD = 0.1  # so that connections made together do not end together
SHUTDOWN = b"shutdown"  # opaque data of the ping that follows the first GOAWAY
KEEPALIVE = b"keepaliv"

_CONTROL_FRAMES = frozenset(
    (
        *(ngh2.SettingsReceived, ngh2.PingReceived, ngh2.PingAcknowledged),
        *(ngh2.PriorityUpdateReceived, ngh2.GoAwayReceived),
    )
)
# How libnghttp2 ends a connection that resets too many streams, and one that breaks too many rules.
_FLOOD_CODES = frozenset((ngh2.ErrorCode.INTERNAL_ERROR, ngh2.ErrorCode.ENHANCE_YOUR_CALM))

Trailers = list[tuple[bytes, bytes]]


class Connection(asyncio.Protocol):
    """A connection of a client; times are the event loop's."""

    def __init__(self, server: "Server") -> None:
        """Prepare; it begins when the transport is there."""
        self.limits = server.limits
        self.counters = server.counters
        self.deadlines = server.deadlines
        self.explain = server.explain
        self.peer = ""
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, Call] = {}
        self._unfinished: dict[int, float] = {}
        self._waiting: dict[Call, Coroutine[Any, Any, None]] = {}
        self._writers: list[asyncio.Future[None]] = []
        self._resets: list[int] = []
        self._unread = b""
        self.receiving = 0
        self.sending = 0
        self._taken = 0
        self._is_flushing = False
        self._is_paused = False
        self._has_settings = False
        self._is_retiring = False
        self._is_left = False
        self._ended: float | None = None
        self._auth_context: Mapping[str, Iterable[bytes]] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection, unless there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        now = self._loop.time()
        self.opened = self.last_active = self.last_heard = self.stalled_since = now
        self._pinged: float | None = None
        self._age_share = random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)  # noqa: S311
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
        self._let_go()
        self._drop_waiting()
        self._close_calls()
        self._wake_writers()

    def _close_calls(self) -> None:
        """Close the calls of a connection that is lost; so many at a time, as the handlers of all then end at once."""
        for stream_id in list(islice(self._calls, MOST_BEGUN)):
            self._calls.pop(stream_id).close()
            self.counters.calls -= 1
        if self._calls:
            self._loop.call_soon(self._close_calls)

    def data_received(self, data: bytes) -> None:
        """Take what a client sent, a slice at a time."""
        self.last_heard = self._loop.time()
        if self._ended is not None:
            return
        if not self._unread and len(data) <= SLICE_BYTES and self.counters.streams < self._server.most_streams:
            self._take(data)
            return
        if not self._unread and not self._is_paused:
            self._server.take_later(self)
        self._unread += data
        if len(self._unread) > UNREAD_BYTES:  # libuv reads up to 32 times in a row
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Keep output back: the socket takes no more. What a client sends meanwhile would only make more of it."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on with the output."""
        self._is_paused = False
        self._flush()
        self._resume_reading()
        if self._unread:
            self._server.take_later(self)

    # What comes in

    def take_slices(self) -> bool:
        """Take slices until the other connections should have their turn; return whether there are more to take."""
        begun, end, place = self.counters.streams, time.perf_counter() + TURN_SECONDS, 0
        while place < len(self._unread) and not self._is_paused and self._ended is None:
            size = SLICE_BYTES if self.counters.streams > begun else UPLOAD_SLICE_BYTES
            self._take(self._unread[place : place + size])
            place += size
            if self.counters.streams - begun >= MOST_BEGUN or time.perf_counter() > end:
                break
        self._unread = self._unread[place:] if self._ended is None else b""
        self._resume_reading()
        return bool(self._unread) and not self._is_paused

    def _resume_reading(self) -> None:
        """Read on, unless there is enough already."""
        if self._is_paused or self._transport.is_closing():
            return
        if not self._unread:
            self._transport.resume_reading()

    def _take(self, data: bytes) -> None:
        try:
            self._http2.receive_data(data)
        except (ngh2.NGH2Error, ValueError) as error:  # no answer is possible any more
            self._count_end(is_flood=isinstance(error, ngh2.DenialOfServiceError))
            self._transport.abort()
            return
        self._handle_events()
        if self._http2.want_write:
            self.flush_soon()

    def _count_end(self, *, is_flood: bool) -> None:
        """Count the end of this connection, which is its client's fault."""
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
                if self.sending:  # its replies may be gone
                    self.flush_soon()
            elif kind is ngh2.ConnectionClosed:
                self._close(event.error_code)
            elif kind in _CONTROL_FRAMES:
                self._has_settings = True
                self._take_control_frame()
                if kind is ngh2.PingAcknowledged:
                    self._pinged = None
                    if self._is_retiring and event.opaque_data == SHUTDOWN:
                        self._finish_shutdown()
                elif kind is ngh2.GoAwayReceived:
                    self._is_left = True

    def _take_control_frame(self) -> None:
        """Count a frame that asks for work and brings none."""
        if self._ended is None and not self._control_frames.take(self._loop.time()):
            self._count_end(is_flood=True)
            self._http2.terminate_connection(ngh2.ErrorCode.ENHANCE_YOUR_CALM)

    def _close(self, error_code: int) -> None:
        """Close the connection: libnghttp2 has ended it, for its client's fault unless the code is NO_ERROR."""
        if not error_code or self._is_left:
            self._end()
            return
        self._count_end(is_flood=error_code in _FLOOD_CODES)
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        # To close a socket that has unread input resets it, and the client would not learn why.
        self._transport.write_eof()
        self._unread = b""
        self._let_go()
        self._close_calls()
        self._resume_reading()

    def _end(self) -> None:
        """Close the connection once what was written is sent."""
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
        """Count a call that can't be served; what there is no room for is counted where that is found."""
        if refused.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.counters.calls_invalid += 1
        elif not refused.trailers:
            self.counters.requests_too_large += 1

    def _require_room_for_call(self) -> None:
        """Let a connection with few calls begin another when little room is left. Raises: Refused."""
        if len(self._calls) >= LIGHT_CALLS or self.counters.calls >= self.limits.max_calls:
            self.counters.calls_refused += 1
            text = "the server has too many calls under way"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text, ("grpc-retry-pushback-ms", "1000"))

    def take_room(self, size: int) -> bool:
        """Take of the room that the process has for requests; return False if there is none."""
        counters = self.counters
        if counters.receiving + size > self._server.most_receiving and not self._server.make_request_room(self, size):
            counters.requests_refused += 1
            return False
        self.receiving += size
        counters.receiving += size
        return True

    def release_room(self, size: int) -> None:
        """Give back what `take_room` took."""
        self.receiving -= size
        self.counters.receiving -= size

    def drop_request(self) -> bool:
        """Refuse the largest request that is not whole; return False if there is none."""
        call = max(self._calls.values(), key=attrgetter("unfinished"), default=None)
        if call is None or not call.unfinished:
            return False
        self.counters.requests_refused += 1
        call.drop_request()
        return True

    @property
    def inflating(self) -> Executor:
        """What inflates large messages."""
        return self._server.inflating

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let the client send as much more."""
        try:
            self._http2.acknowledge_received_data(size, stream_id)
        except ngh2.NGH2Error:  # the connection is about to end
            pass

    def start(self, call: Call, run: Coroutine[Any, Any, None]) -> None:
        """Run a call's handler, once the client has taken enough of its replies."""
        if self.sending > SENDING_BYTES:
            self._waiting[call] = run
        else:
            call.started(self._loop.create_task(run))

    def _start_waiting(self) -> None:
        while self._waiting and self.sending <= SENDING_BYTES:
            call = next(iter(self._waiting))
            run = self._waiting.pop(call)
            if call.is_done:
                run.close()
            else:
                call.started(self._loop.create_task(run))

    def _drop_waiting(self) -> None:
        for run in self._waiting.values():
            run.close()
        self._waiting.clear()

    # What goes out

    def has_room(self, size: int) -> bool:
        """Return whether the process may hold a reply of this size until the client takes it."""
        return self.counters.sending + size <= self._server.most_sending or self._server.make_room(self, size)

    def send_reply(self, stream_id: int, head: Headers | None, message: bytes, trailers: Trailers) -> None:
        """Send a reply whole: its headers unless they are sent, its message, its status."""
        http2 = self._http2
        try:
            if head is not None:
                http2.send_response(stream_id, head)
            if len(message) <= UNFRAMED_BYTES:
                http2.send_data(stream_id, frame(message))
            else:
                http2.send_data(stream_id, prefix(message))
                http2.send_data(stream_id, message)
            http2.send_trailers(stream_id, trailers)
        except ngh2.NGH2Error:  # its stream is closed, and the call will be told so
            return
        self._hold(PREFIX_SIZE + len(message))

    def send_response(self, stream_id: int, headers: Headers) -> None:
        """Send the headers of a reply."""
        try:
            self._http2.send_response(stream_id, headers)
        except ngh2.NGH2Error:
            return
        self.flush_soon()

    def send_message(self, stream_id: int, message: bytes) -> None:
        """Send a message."""
        try:
            self._http2.send_data(stream_id, prefix(message))
            self._http2.send_data(stream_id, message)
        except ngh2.NGH2Error:
            return
        self._hold(PREFIX_SIZE + len(message))

    def send_trailers(self, stream_id: int, trailers: Trailers) -> None:
        """Send the status."""
        try:
            self._http2.send_trailers(stream_id, trailers)
        except ngh2.NGH2Error:
            return
        self.flush_soon()

    def send_only(self, stream_id: int, headers: Headers, *, reset: bool) -> None:
        """Send headers that are the whole reply; `reset` tells the client to stop sending."""
        try:
            self._http2.send_response(stream_id, headers, end_stream=True)
        except ngh2.NGH2Error:
            return
        if reset:
            self._resets.append(stream_id)
        self.flush_soon()

    async def writable(self, call: Call, most: int) -> None:
        """Wait until the client has taken a stream's messages, but for `most` bytes."""
        while not call.is_closed and (
            self.sending > SENDING_BYTES
            or self._http2.queued_body_size(call.stream_id) > most
            or not self.has_room(most)
        ):
            future = self._loop.create_future()
            self._writers.append(future)
            await future

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, []
        for future in writers:
            if not future.done():
                future.set_result(None)

    def _hold(self, size: int) -> None:
        if not self.sending:
            self._taken = 0
            self.stalled_since = self._loop.time()
        self.sending += size
        self.counters.sending += size
        self.flush_soon()

    def flush_soon(self) -> None:
        """Send at the end of this tick, together with all that it still brings."""
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if self._transport.is_closing():
            return
        http2 = self._http2
        self._server.most_streams = self.counters.streams + BEGUN_AT_ONCE
        for _ in range(OUTPUTS_AT_ONCE):
            if self._is_paused:
                break
            output = http2.data_to_send(OUTPUT_BYTES if self.sending > OUTPUT_BYTES else None)
            if not output and self._resets:
                self._send_resets()
                continue
            if not output:
                break
            self._transport.write(output)
            if self.sending <= OUTPUT_BYTES and not self._resets:
                break
        else:
            self.flush_soon()
        if self.sending or self._is_paused:
            self._release()
        self._handle_events()
        if self._writers:
            self._wake_writers()
        if self._waiting:
            self._start_waiting()

    def _send_resets(self) -> None:
        """Reset streams whose replies are sent."""
        resets, self._resets = self._resets, []
        with suppress(ngh2.NGH2Error):  # the connection has ended
            for stream_id in resets:
                self._http2.reset_stream(stream_id, ngh2.ErrorCode.NO_ERROR)

    def _release(self) -> None:
        """Take note of what the client has taken, as far as that is known."""
        sending = self._http2.queued_body_size()
        if self._is_paused:
            sending += self._transport.get_write_buffer_size()
        if sending != self.sending:
            self.counters.sending += sending - self.sending
            self._taken += self.sending - sending
            self.sending = sending
            if self._taken >= PROGRESS_BYTES:
                self._taken = 0
                self.stalled_since = self._loop.time()

    # Its end

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return who the client is, by its certificate; nothing without one."""
        if self._auth_context is None:
            self._auth_context = auth_context(self._transport.get_extra_info("ssl_object"))
        return self._auth_context

    def is_stalled(self, before: float) -> bool:
        """Return whether replies are waiting of which the client has taken nothing since then."""
        return bool(self.sending) and self.stalled_since < before

    def shut_down(self) -> None:
        """Tell the client to open no more streams here, and close once those that are open have ended."""
        if self._is_retiring or self._ended is not None:
            return
        self._is_retiring = True
        self.retired = self._loop.time()
        self._http2.send_shutdown_notice()
        self._http2.ping(SHUTDOWN)  # when it is answered, no stream that the client opened before is on its way
        self.flush_soon()

    def _finish_shutdown(self) -> None:
        self._http2.send_goaway()
        self.flush_soon()

    def look(self, now: float) -> None:
        """See to what is due by now: what has lasted too long, and whether the client is still there."""
        limits = self.limits
        if self._ended is not None:
            if now - self._ended > LINGER_SECONDS:
                self._transport.close()
            if now - self._ended > limits.send_timeout:
                self._transport.abort()
            return
        if self.sending or self._is_paused:
            self._release()
        if self._calls:
            self.last_active = now
            self._end_late_requests(now)
        if self._writers:
            self._wake_writers()
        if self._is_retiring:
            self._look_retiring(now)
        elif not self._has_settings:
            if now - self.opened > limits.handshake_timeout:
                self.time_out()
        elif limits.max_connection_age and now - self.opened > limits.max_connection_age * self._age_share:
            self.counters.connections_retired += 1
            self.shut_down()
        elif limits.max_connection_idle and now - self.last_active > limits.max_connection_idle:
            self.counters.connections_retired += 1
            self.shut_down()
        if self.is_stalled(now - limits.send_timeout):
            self.time_out()
        elif self._pinged is not None:
            if now - max(self._pinged, self.last_heard) > limits.keepalive_timeout:
                self.time_out()
        elif limits.keepalive_time and now - self.last_heard > limits.keepalive_time and self._has_settings:
            self._pinged = now
            self._http2.ping(KEEPALIVE)
            self.flush_soon()

    def _end_late_requests(self, now: float) -> None:
        """End the calls whose clients don't send their requests."""
        seen = self._unfinished
        self._unfinished = {number: seen.get(number, now) for number, call in self._calls.items() if call.is_late(inf)}
        for number, since in self._unfinished.items():
            if (call := self._calls[number]).is_late(now - since):
                call.time_out()

    def _look_retiring(self, now: float) -> None:
        if now - self.retired > NOTICE_SECONDS:
            self._finish_shutdown()
        if now - self.retired > self.limits.max_connection_age_grace:
            self.end(grpc.StatusCode.UNAVAILABLE, "the connection has ended")

    def time_out(self) -> None:
        """Close the connection of a client that is not there, or takes nothing."""
        self.counters.connections_timed_out += 1
        self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self._ended = self._loop.time()
        self._transport.abort()
        self._let_go()

    def _let_go(self) -> None:
        """Drop the replies that wait."""
        self.counters.sending -= self.sending
        self.sending = 0
        with suppress(ngh2.NGH2Error):  # it has ended
            self._http2.terminate_connection()

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """Answer every call with a status, and close."""
        for call in list(self._calls.values()):
            call.end_with(code, details)
        self._flush()
        self._end()


def _peer(name: object) -> str:
    """Return an address as gRPC writes it."""
    if not isinstance(name, tuple):
        return "unix:"
    host, port = name[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
