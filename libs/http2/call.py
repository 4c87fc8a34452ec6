"""One call: its request as it comes in, its handler, its reply."""

import asyncio
import logging
from collections import deque
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
    status_trailers,
    write_metadata,
)

if TYPE_CHECKING:
    from libs.http2.connection import Connection

INFLATED_AT_ONCE = 16 * 1024  # bytes; more is inflated in a thread
LIGHT_BYTES = 1024  # of a request or its metadata, which are not counted
MESSAGE_BYTES = 128  # that a message takes besides its own
LEAST_RATE = 16 * 1024  # bytes of a request that a client has to send in a second, beyond `receive_timeout`
UNREAD_BYTES = 256 * 1024  # of requests that a handler has not read; beyond it the client's window is not opened
UNSENT_BYTES = 256 * 1024  # of a stream's replies; beyond it `write` waits

log = logging.getLogger(__name__)


class Call(Context):
    """A call of a method; the connection tells it what comes in and whether its stream is closed."""

    __slots__ = (
        "_connection",
        "_handler",
        "_has_head",
        "_held",
        "_is_ended",
        "_is_finished",
        "_messages",
        "_read",
        "_requests",
        "_task",
        "_tick",
        "_unacknowledged",
        "_unread",
        "is_closed",
        "stream_id",
    )

    def __init__(self, connection: "Connection", stream_id: int, head: Head, handler: Any) -> None:
        """Begin with what the headers say."""
        super().__init__(head, connection)
        self.stream_id = stream_id
        self.is_closed = False
        self._connection = connection
        self._handler = handler
        self._has_head = False
        self._is_finished = False
        self._is_ended = False
        self._messages: Messages | None = None
        self._held = 0
        self._task: asyncio.Task[None] | None = None
        self._tick: int | None = None
        if head.timeout is not None:
            self._set_deadline(head.timeout)

    def begin(self, end: bool) -> None:
        """Begin to serve it; `end` says that no data follow the headers."""
        if self._head.size > LIGHT_BYTES:
            try:
                self._take_room(self._head.size)
            except Refused as refused:
                self._refuse_request(refused)
                return
        if self._handler.request_streaming:
            self._requests: deque[tuple[bool, bytes]] = deque()
            self._read: asyncio.Future[None] | None = None
            self._unread = self._unacknowledged = 0
            self._connection.start(self, self._run_streaming())
        if end:
            self.receive(b"", end)

    # What comes in

    def receive(self, data: bytes, end: bool) -> None:
        """Take data of the request."""
        if self._is_finished:
            self._connection.acknowledge(self.stream_id, len(data))
        elif self._handler.request_streaming:
            self._receive_stream(data, end)
        else:
            self._receive_only(data, end)

    def _receive_only(self, data: bytes, end: bool) -> None:
        self._is_ended = end
        self._connection.acknowledge(self.stream_id, len(data))
        if end and self._messages is None and len(data) <= LIGHT_BYTES and is_frame(data):  # as nearly all requests are
            self._start(data[PREFIX_SIZE:], compressed=False)
            return
        try:
            messages = self._hold(data)
            if not end:
                return
            message = messages.next()
            if message is None:
                if messages:
                    raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the message of the request is not whole")
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "the method takes one message, the request has none")
            if messages:
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "the method takes one message, the request has more")
        except Refused as refused:
            self._refuse_request(refused)
            return
        self._start(message[1], compressed=message[0])

    def _receive_stream(self, data: bytes, end: bool) -> None:
        self._is_ended = end
        self._unacknowledged += len(data)
        try:
            messages = self._hold(data)
            while (message := messages.next()) is not None:
                self._take_room(MESSAGE_BYTES)
                self._unread += MESSAGE_BYTES + len(message[1])
                self._requests.append(message)
            if end and messages:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the last message of the request is not whole")
        except Refused as refused:
            self._refuse_request(refused)
            return
        self._acknowledge_stream()
        if self._read is not None and not self._read.done():
            self._read.set_result(None)

    def _acknowledge_stream(self) -> None:
        if self._unread <= UNREAD_BYTES:
            size, self._unacknowledged = self._unacknowledged, 0
            self._connection.acknowledge(self.stream_id, size)

    def _hold(self, data: bytes) -> Messages:
        """Keep data until its message is whole. Raises: Refused if that is too much."""
        if self._messages is None:
            self._messages = Messages(self._connection.limits.message_of(self._head.path))
        self._take_room(len(data))
        self._messages.add(data)
        return self._messages

    def _take_room(self, size: int) -> None:
        """Take of the room that the process has for requests, until the call has ended. Raises: Refused."""
        if not self._connection.take_room(size):
            text = "the server has too many unfinished requests"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text, ("grpc-retry-pushback-ms", "1000"))
        self._held += size

    @property
    def unfinished(self) -> int:
        """The bytes held of a request that is not whole; 0 if it is."""
        return 0 if self._is_ended or self._is_finished else self._held

    def drop_request(self) -> None:
        """Refuse the request, whose room others need."""
        text = "the server has too many unfinished requests"
        self._refuse_request(Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text, ("grpc-retry-pushback-ms", "1000")))

    def is_late(self, seconds: float) -> bool:
        """Return whether the request should be whole, when the call has been open for so long."""
        if self._is_ended or self._is_finished or self._handler.request_streaming:
            return False
        return seconds > self._connection.limits.receive_timeout + self._held / LEAST_RATE

    def time_out(self) -> None:
        """End the call, whose client does not send its request."""
        self._connection.counters.requests_timed_out += 1
        self.end_with(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not come in time")

    def _release(self, size: int) -> None:
        """Give back what `_hold` took of the process's share."""
        self._connection.release_room(size)
        self._held -= size

    # Its handler

    def _start(self, message: bytes, *, compressed: bool) -> None:
        self._messages = None
        run = self._run_unary_stream if self._handler.response_streaming else self._run_unary
        self._connection.start(self, run(message, compressed))

    def started(self, task: "asyncio.Task[None]") -> None:
        """Take the task that runs the handler."""
        self._task = task

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
        """Return a message as the handler takes it. Raises: Refused."""
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
        """Return a compressed message as it was. Raises: Refused."""
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
        while not self._requests:
            if self._is_ended:
                return grpc.aio.EOF
            self._read = asyncio.get_running_loop().create_future()
            await self._read
        compressed, message = self._requests.popleft()
        request = await self._request(message, compressed)
        self._release(MESSAGE_BYTES + PREFIX_SIZE + len(message))
        self._unread -= MESSAGE_BYTES + len(message)
        if self._unacknowledged:
            self._acknowledge_stream()
            self._connection.flush_soon()
        return request

    async def _write_all(self, replies: Any) -> None:
        """Send what a handler yields, or let it write; then finish."""
        if hasattr(replies, "__aiter__"):
            async with aclosing(replies):
                async for reply in replies:
                    await self.write(reply)
        else:
            await replies
        self.finish()

    # Its reply

    async def send_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the headers of the reply now, with metadata. Raises: grpc.aio.UsageError if they are sent."""
        if self._has_head:
            raise grpc.aio.UsageError("the headers of the reply are sent")
        self._send_head(write_metadata(initial_metadata))

    async def write(self, message: Any) -> None:
        """Send a message of a streaming reply; wait while the client is slow to take those before.

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
        """Send the one reply and the status."""
        if self._is_finished:
            return
        if self._code:
            self.finish()
            return
        message = self._serialize(reply)
        if not self._connection.has_room(len(message)):
            self._connection.counters.replies_refused += 1
            text = "the server holds too many replies that clients have not taken"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text, ("grpc-retry-pushback-ms", "1000"))
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
        """Answer a request that can't be served, and end its handler."""
        self._refuse(refused)
        self.cancel()
        self._end_if_unstarted()

    def _refuse(self, refused: Refused) -> None:
        self._connection.count_refused(refused)
        self._code, self._details = refused.code.value[0], refused.details
        self._trailing = self._connection.explain(refused)
        self.finish()

    def _fail(self, error: BaseException) -> None:
        """Answer what a handler raised.

        A cancellation ends here. The task would keep it, and it the frames, and they the task: cycles that the garbage
        collector has to find, and after thousands of cancelled calls that held the event loop for 30 ms.
        """
        if isinstance(error, Refused):
            self._refuse(error)
        elif isinstance(error, grpc.aio.AbortError):
            self.finish()
        elif isinstance(error, asyncio.CancelledError):
            self._code = self._code or grpc.StatusCode.CANCELLED.value[0]
            self.finish()
        elif not isinstance(error, Exception):
            raise error
        else:
            log.error("a handler failed: %s", self._head.path, exc_info=error)
            self._code = self._code or grpc.StatusCode.UNKNOWN.value[0]
            self._details = "the handler of the method failed"
            self.finish()

    # Its end

    def _set_deadline(self, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self.deadline = now + seconds
        self._tick = self._connection.deadlines.add(self, self.deadline, seconds)

    def expire(self) -> None:
        """End the call at its deadline."""
        self._tick = None
        self._connection.counters.deadlines_exceeded += 1
        self.end_with(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def end_with(self, code: grpc.StatusCode, details: str) -> None:
        """Answer with a status now, and end the handler."""
        self.is_cancelled = True
        self._code, self._details, self._trailing = code.value[0], details, ()
        self.finish()
        self.cancel()
        self._end_if_unstarted()

    def cancel(self) -> None:
        """End the handler."""
        if (task := self._task) is not None:
            task.cancel()
            if isinstance(run := task.get_coro(), Coroutine) and getcoroutinestate(run) == CORO_CREATED:
                self._task = None  # it never begins, so that it ends nothing

    def close(self) -> None:
        """Take note that the stream is closed: by its end, or before it by the client."""
        self.is_closed = True
        if self._handler.request_streaming and self._unacknowledged:
            self._connection.acknowledge(self.stream_id, self._unacknowledged)
        if not self._is_finished:
            self._is_finished = self.is_cancelled = True
            self.cancel()
            self._end_if_unstarted()

    def _end_if_unstarted(self) -> None:
        if self._task is None and not self.is_done:
            self._end()

    def _end(self) -> None:
        """Let go of all that the call holds."""
        if self._tick is not None:
            self._connection.deadlines.discard(self, self._tick)
            self._tick = None
        if self._held:
            self._release(self._held)
        self._messages = None
        self.end()
