"""The sending half of an HTTP/2 connection: replies, the output buffer, and handlers that wait for a slow client."""

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import ngh2

from libs.http2.framing import PREFIX_SIZE, UNFRAMED_BYTES, Headers, frame, prefix

if TYPE_CHECKING:
    from libs.http2.call import Call
    from libs.http2.server import Server

BEGUN_AT_ONCE = 256  # requests that all connections together may begin before the tasks of these have run
OUTPUT_BYTES = 256 * 1024  # written to the socket at a time
OUTPUTS_AT_ONCE = 3  # writes of one connection before the other connections have their turn
SENDING_BYTES = 1024 * 1024  # of replies that the client has not taken; above it no handler is started
PROGRESS_BYTES = 16 * 1024  # a client that takes less than this within a timeout counts as stalled

Trailers: TypeAlias = list[tuple[bytes, bytes]]


class Output(asyncio.Protocol):
    """Sends replies; `sending` is the size of those that the client has not taken, in bytes.

    Its users call `flush_soon`: all that one tick of the event loop brings is written at once.
    """

    _transport: asyncio.Transport
    _http2: ngh2.Connection

    def __init__(self, server: "Server") -> None:
        self.counters = server.counters
        self.sending = 0
        self.stalled_since = 0.0
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._sent = 0  # bytes that the client has taken since `stalled_since`
        self._is_flushing = False
        self._is_paused = False
        self._waiting: dict[Call, Coroutine[Any, Any, None]] = {}
        self._writers: list[asyncio.Future[None]] = []
        self._resets: list[int] = []

    @abstractmethod
    def _handle_events(self) -> None:
        """Handle the events of libnghttp2."""

    # Replies

    def has_room(self, size: int) -> bool:
        """Return whether the process may hold a reply of this size until the client takes it."""
        return self.counters.sending + size <= self._server.most_sending or self._server.make_room(self, size)

    def send_reply(self, stream_id: int, head: Headers | None, message: bytes, trailers: Trailers) -> None:
        """Send a whole reply: its headers unless they are sent, its message, its status."""
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
        except ngh2.NGH2Error:  # the stream is closed; its event follows
            return
        self._add_sending(PREFIX_SIZE + len(message))

    def send_response(self, stream_id: int, headers: Headers) -> None:
        """Send the headers of a reply."""
        with suppress(ngh2.NGH2Error):
            self._http2.send_response(stream_id, headers)
            self.flush_soon()

    def send_message(self, stream_id: int, message: bytes) -> None:
        """Send a message."""
        with suppress(ngh2.NGH2Error):
            self._http2.send_data(stream_id, prefix(message))
            self._http2.send_data(stream_id, message)
            self._add_sending(PREFIX_SIZE + len(message))

    def send_trailers(self, stream_id: int, trailers: Trailers) -> None:
        """Send the status."""
        with suppress(ngh2.NGH2Error):
            self._http2.send_trailers(stream_id, trailers)
            self.flush_soon()

    def send_only(self, stream_id: int, headers: Headers, *, reset: bool) -> None:
        """Send headers that are the whole reply. With `reset` the client need not send the rest of its request."""
        with suppress(ngh2.NGH2Error):
            self._http2.send_response(stream_id, headers, end_stream=True)
            if reset:
                self._resets.append(stream_id)
            self.flush_soon()

    # Slow clients

    def start(self, call: "Call", run: Coroutine[Any, Any, None]) -> None:
        """Run a call's handler, once the client has taken enough of its replies."""
        if self.sending > SENDING_BYTES:
            self._waiting[call] = run
        else:
            call.task = self._loop.create_task(run)

    def _start_waiting(self) -> None:
        while self._waiting and self.sending <= SENDING_BYTES:
            call = next(iter(self._waiting))
            run = self._waiting.pop(call)
            if call.is_done:
                run.close()
            else:
                call.task = self._loop.create_task(run)

    def _drop_waiting(self) -> None:
        for run in self._waiting.values():
            run.close()
        self._waiting.clear()

    async def writable(self, call: "Call", size: int) -> None:
        """Wait until the client has taken all but `size` bytes of a stream's messages."""
        while not call.is_closed and (
            self.sending > SENDING_BYTES
            or self._http2.queued_body_size(call.stream_id) > size
            or not self.has_room(size)
        ):
            future = self._loop.create_future()
            self._writers.append(future)
            await future

    def _wake_writers(self) -> None:
        writers, self._writers = self._writers, []
        for future in writers:
            if not future.done():
                future.set_result(None)

    def is_stalled(self, before: float) -> bool:
        """Return whether replies wait of which the client has taken nothing since `before`."""
        return bool(self.sending) and self.stalled_since < before

    # The buffer

    def _add_sending(self, size: int) -> None:
        if not self.sending:
            self._sent = 0
            self.stalled_since = self._loop.time()
        self.sending += size
        self.counters.sending += size
        self.flush_soon()

    def flush_soon(self) -> None:
        """Send at the end of this tick of the event loop."""
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
            self._update_sending()
        self._handle_events()
        if self._writers:
            self._wake_writers()
        if self._waiting:
            self._start_waiting()

    def _send_resets(self) -> None:
        """Reset the streams whose replies are sent."""
        resets, self._resets = self._resets, []
        with suppress(ngh2.NGH2Error):  # the connection has ended
            for stream_id in resets:
                self._http2.reset_stream(stream_id, ngh2.ErrorCode.NO_ERROR)

    def _update_sending(self) -> None:
        """Subtract from `sending` what the client has taken, as far as that is known."""
        sending = self._http2.queued_body_size()
        if self._is_paused:
            sending += self._transport.get_write_buffer_size()
        if sending != self.sending:
            self.counters.sending += sending - self.sending
            self._sent += self.sending - sending
            self.sending = sending
            if self._sent >= PROGRESS_BYTES:
                self._sent = 0
                self.stalled_since = self._loop.time()

    def _drop_output(self) -> None:
        """Drop the replies that the client has not taken."""
        self.counters.sending -= self.sending
        self.sending = 0
        with suppress(ngh2.NGH2Error):  # it has ended
            self._http2.terminate_connection()
