"""One call: its request, its handler, its reply."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing
from inspect import CORO_CREATED, getcoroutinestate
from typing import TYPE_CHECKING, Any

import grpc

from libs.http2.context import Context
from libs.http2.framing import (
    PREFIX_SIZE,
    RESPONSE,
    Head,
    Messages,
    Refused,
    inflate,
    inflate_light,
    is_frame,
    overloaded,
    status_trailers,
    write_metadata,
)
from libs.http2.request_stream import MESSAGE_BYTES, RequestStream

if TYPE_CHECKING:
    from libs.http2.connection import Connection

INFLATED_AT_ONCE = 16 * 1024  # bytes; a larger message is inflated in a thread
LIGHT_BYTES = 1024  # a smaller request, or its metadata, is not counted
LEAST_RATE = 16 * 1024  # bytes that a client must send per second after `receive_timeout`
TOO_MANY_REQUESTS = "the server has too many unfinished requests"
UNSENT_BYTES = 256 * 1024  # of a stream's replies; above it `write` waits

log = logging.getLogger(__name__)


class Call(Context):
    """A call of a method. The connection passes it the data of the request, and the end of its stream."""

    __slots__ = (
        "_connection",
        "_handler",
        "_has_head",
        "_held",
        "_is_ended",
        "_is_finished",
        "_messages",
        "_stream",
        "_tick",
        "is_closed",
        "stream_id",
        "task",
    )

    def __init__(self, connection: "Connection", stream_id: int, head: Head, handler: Any) -> None:
        super().__init__(head, connection)
        self.stream_id = stream_id
        self.is_closed = False
        self._connection = connection
        self._handler = handler
        self._has_head = False
        self._is_finished = False
        self._is_ended = False
        self._messages: Messages | None = None
        self._stream: RequestStream | None = None
        self._held = 0
        self.task: asyncio.Task[None] | None = None
        self._tick: int | None = None
        if head.timeout is not None:
            self.deadline = asyncio.get_running_loop().time() + head.timeout
            self._tick = connection.deadlines.add(self, self.deadline, head.timeout)

    def begin(self, end: bool) -> None:
        """Begin to serve the call; `end` means that no data follow the headers."""
        if self._head.size > LIGHT_BYTES:
            try:
                self._take_room(self._head.size)
            except Refused as refused:
                self._refuse_request(refused)
                return
        if self._handler.request_streaming:
            self._stream = RequestStream(self._connection, self.stream_id)
            self._connection.start(self, self._run_streaming())
        if end:
            self.receive(b"", end)

    # The request

    def receive(self, data: bytes, end: bool) -> None:
        """Receive data of the request; `end` means that no more follow."""
        if self._is_finished:
            self._connection.acknowledge(self.stream_id, len(data))
        elif self._stream is not None:
            self._receive_stream(self._stream, data, end)
        else:
            self._receive_only(data, end)

    def _receive_only(self, data: bytes, end: bool) -> None:
        self._is_ended = end
        self._connection.acknowledge(self.stream_id, len(data))
        if end and self._messages is None and len(data) <= LIGHT_BYTES and is_frame(data):  # nearly all requests are
            self._start(data[PREFIX_SIZE:], compressed=False)
            return
        try:
            messages = self._hold(data)
            if not end:
                return
            message = messages.next()
            if message is None and messages:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the message of the request is not whole")
            if message is None or messages:
                text = f"the method takes one message, the request has {'none' if message is None else 'more'}"
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, text)
        except Refused as refused:
            self._refuse_request(refused)
            return
        self._start(message[1], compressed=message[0])

    def _receive_stream(self, stream: RequestStream, data: bytes, end: bool) -> None:
        self._is_ended = end
        try:
            messages = self._hold(data)
            while (message := messages.next()) is not None:
                self._take_room(MESSAGE_BYTES)
                stream.add(message)
            if end and messages:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the last message of the request is not whole")
        except Refused as refused:
            self._refuse_request(refused)
            self._connection.acknowledge(self.stream_id, len(data))
            return
        stream.received(len(data), end)

    def _hold(self, data: bytes) -> Messages:
        """Keep data until its message is complete. Raises: Refused if it is too large."""
        if self._messages is None:
            self._messages = Messages(self._connection.limits.message_of(self._head.path))
        self._take_room(len(data))
        self._messages.add(data)
        return self._messages

    def _take_room(self, size: int) -> None:
        """Reserve memory for the request until the call has ended. Raises: Refused."""
        if not self._connection.take_room(size):
            raise overloaded(TOO_MANY_REQUESTS)
        self._held += size

    @property
    def unfinished(self) -> int:
        """The bytes held of an incomplete request; 0 if it is complete."""
        return 0 if self._is_ended or self._is_finished else self._held

    def drop_request(self) -> None:
        """Refuse the request, to free its memory for others."""
        self._refuse_request(overloaded(TOO_MANY_REQUESTS))

    def is_late(self, seconds: float) -> bool:
        """Return whether the request is overdue when the call has been open for `seconds`."""
        if self._is_ended or self._is_finished or self._stream is not None:
            return False
        return seconds > self._connection.limits.receive_timeout + self._held / LEAST_RATE

    def time_out(self) -> None:
        """End the call: its request was not received in time."""
        self._connection.counters.requests_timed_out += 1
        self.end_with(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not come in time")

    def _release(self, size: int) -> None:
        """Release memory of the request."""
        self._connection.release_room(size)
        self._held -= size

    # The handler

    def _start(self, message: bytes, *, compressed: bool) -> None:
        self._messages = None
        run = self._run_unary_stream if self._handler.response_streaming else self._run_unary
        self._connection.start(self, run(message, compressed))

    async def _run_unary(self, message: bytes, compressed: bool) -> None:
        handler = self._handler
        try:
            is_ready = handler.request_deserializer is None and not compressed
            request = message if is_ready else await self._request(message, compressed)
            self._reply(await handler.unary_unary(request, self))
        except BaseException as error:
            self._fail(error)
        finally:
            self._end()

    async def _run_unary_stream(self, message: bytes, compressed: bool) -> None:
        try:
            request = await self._request(message, compressed)
            await self._write_all(self._handler.unary_stream(request, self))
        except BaseException as error:
            self._fail(error)
        finally:
            self._end()

    async def _run_streaming(self) -> None:
        handler = self._handler
        try:
            if handler.response_streaming:
                await self._write_all(handler.stream_stream(self._all_requests(), self))
            else:
                self._reply(await handler.stream_unary(self._all_requests(), self))
        except BaseException as error:
            self._fail(error)
        finally:
            self._end()

    async def _request(self, message: bytes, compressed: bool) -> Any:
        """Return a message as the handler's argument. Raises: Refused."""
        if compressed:
            message = await self._inflate(message)
        parse: Callable[[bytes], Any] | None = self._handler.request_deserializer
        if parse is None:
            return message
        try:
            return parse(message)
        except Exception as error:
            text = "the bytes are no valid message of this method"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text) from error

    async def _inflate(self, message: bytes) -> bytes:
        """Return a decompressed message. Raises: Refused."""
        encoding, loop = self._head.encoding, asyncio.get_running_loop()
        inflated = inflate_light(message, encoding, INFLATED_AT_ONCE)
        if inflated is None:
            arguments = message, encoding, self._connection.limits.message_of(self._head.path)
            inflated = await loop.run_in_executor(self._connection.inflating, inflate, *arguments)
            self._take_room(len(inflated))
        return inflated

    async def _all_requests(self) -> AsyncIterator[Any]:
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    async def read(self) -> Any:
        """Return the next message of a streaming request, grpc.aio.EOF at its end."""
        stream: Any = self._stream
        if (found := await stream.next()) is None:
            return grpc.aio.EOF
        compressed, message = found
        request = await self._request(message, compressed)
        self._release(MESSAGE_BYTES + PREFIX_SIZE + len(message))
        stream.has_read(message)
        return request

    async def _write_all(self, replies: Any) -> None:
        """Send what a handler yields, or wait while it writes; then finish."""
        if hasattr(replies, "__aiter__"):
            async with aclosing(replies):
                async for reply in replies:
                    await self.write(reply)
        else:
            await replies
        self.finish()

    # The reply

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the headers of the reply now, with metadata. Raises: grpc.aio.UsageError if they were sent."""
        if self._has_head:
            raise grpc.aio.UsageError("the headers of the reply are sent")
        self._send_head(write_metadata(initial_metadata))

    async def write(self, message: Any) -> None:
        """Send a message of a streaming reply; wait while the client has not taken earlier ones.

        Raises: grpc.aio.UsageError if the call has ended.
        """
        await self._connection.writable(self, UNSENT_BYTES)
        if self._is_finished:
            raise grpc.aio.UsageError("the call has ended")
        if not self._has_head:
            self._send_head([])
        self._connection.send_message(self.stream_id, self._serialize(message))

    def _serialize(self, reply: Any) -> bytes:
        serialize: Callable[[Any], bytes] | None = self._handler.response_serializer
        return reply if serialize is None else serialize(reply)

    def _reply(self, reply: Any) -> None:
        """Send the reply of a unary method, and the status."""
        if self._is_finished:
            return
        if self._code:
            self.finish()
            return
        message = self._serialize(reply)
        if not self._connection.has_room(len(message)):
            self._connection.counters.replies_refused += 1
            raise overloaded("the server holds too many replies that clients have not taken")
        self._is_finished = True
        head = None if self._has_head else RESPONSE
        self._connection.send_reply(self.stream_id, head, message, self._trailers())

    def _send_head(self, metadata: list[tuple[bytes, bytes]]) -> None:
        if not self._is_finished:
            self._has_head = True
            self._connection.send_response(self.stream_id, [*RESPONSE, *metadata] if metadata else RESPONSE)

    def finish(self) -> None:
        """Send the status, once."""
        if self._is_finished:
            return
        self._is_finished = True
        if self._has_head:
            self._connection.send_trailers(self.stream_id, self._trailers())
        else:
            self._connection.send_only(self.stream_id, [*RESPONSE, *self._trailers()], reset=not self._is_ended)

    def _trailers(self) -> list[tuple[bytes, bytes]]:
        trailers = status_trailers(self._code, self._details)
        if self._trailing:
            trailers += write_metadata(self._trailing)
        return trailers

    def _refuse_request(self, refused: Refused) -> None:
        """Answer an invalid or too large request, and cancel its handler."""
        self._refuse(refused)
        self.cancel()
        self._end_if_unstarted()

    def _refuse(self, refused: Refused) -> None:
        self._connection.count_refused(refused)
        self._code, self._details = refused.code.value[0], refused.details
        self._trailing = self._connection.explain(refused)
        self.finish()

    def _fail(self, error: BaseException) -> None:
        """Answer an exception of a handler.

        A cancellation is not raised further. The task would keep it, the exception the frames, and they the task: a
        cycle. After thousands of canceled calls the garbage collector held the event loop for 30 ms.
        """
        if isinstance(error, Refused):
            self._refuse(error)
            return
        if isinstance(error, asyncio.CancelledError):
            self._code = self._code or grpc.StatusCode.CANCELLED.value[0]
        elif not isinstance(error, Exception):
            raise error
        elif not isinstance(error, grpc.aio.AbortError):
            log.error("a handler failed: %s", self._head.path, exc_info=error)
            self._code = self._code or grpc.StatusCode.UNKNOWN.value[0]
            self._details = "the handler of the method failed"
        self.finish()

    # The end

    def expire(self) -> None:
        """End the call at its deadline."""
        self._tick = None
        self._connection.counters.deadlines_exceeded += 1
        self.end_with(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def end_with(self, code: grpc.StatusCode, details: str) -> None:
        """Answer with a status now, and cancel the handler."""
        self.is_cancelled = True
        self._code, self._details, self._trailing = code.value[0], details, ()
        self.finish()
        self.cancel()
        self._end_if_unstarted()

    def cancel(self) -> None:
        """Cancel the handler."""
        if (task := self.task) is not None:
            task.cancel()
            if isinstance(run := task.get_coro(), Coroutine) and getcoroutinestate(run) == CORO_CREATED:
                self.task = None  # it never begins, so its `finally` does not run

    def close(self) -> None:
        """Handle the end of the stream: the call has ended, or its client has canceled it."""
        self.is_closed = True
        if self._stream is not None:
            self._stream.close()
        if not self._is_finished:
            self._is_finished = self.is_cancelled = True
            self.cancel()
            self._end_if_unstarted()

    def _end_if_unstarted(self) -> None:
        if self.task is None and not self.is_done:
            self._end()

    def _end(self) -> None:
        """Release everything that the call holds."""
        if self._tick is not None:
            self._connection.deadlines.discard(self, self._tick)
            self._tick = None
        if self._held:
            self._release(self._held)
        self._messages = None
        self.end()
