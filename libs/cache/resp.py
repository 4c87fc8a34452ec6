"""One pipelined connection to Redis, for the four commands that every RPC stands on.

redis-py connects: address, TLS, login, database. From then on commands go out as they are asked for, and their replies
come back in the same order, with nothing in between but hiredis: about half of what a command costs through the client
(measured, decision 0005). A reply can't meet another's command: who stops waiting leaves its place in the row.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

OnReply = Callable[[Any], None]
GRACE = 0.1  # of the timeout: what is left for a reply that is here, unread, when the rest of it has passed
_INCOMPLETE = object()


class RespConnection(asyncio.Protocol):
    """A connection; `on_push` gets what the server says unasked, `on_lost` is told once that it can't be used more."""

    def __init__(
        self,
        connection: Any,
        timeout: float,
        on_lost: Callable[[Exception], None],
        on_push: Callable[[list[Any]], None] = lambda _: None,
    ) -> None:
        """Take over what redis-py has connected; a reply that takes longer than `timeout` s loses the connection."""
        self._stream = connection._writer  # kept: it closes its transport when it is collected
        connection._reader = connection._writer = None  # redis-py has nothing left to close
        self._transport: asyncio.Transport = self._stream.transport
        self._timeout = timeout
        self._on_lost = on_lost
        self._on_push = on_push
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[float, OnReply]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: tuple[float, OnReply] | None = None
        self.lost: Exception | None = None
        self._transport.set_protocol(self)

    def send(self, on_reply: OnReply, *command: str | bytes | int) -> None:
        """Send a command; `on_reply` gets its reply, or the exception that came instead."""
        if self.lost:
            on_reply(self.lost)
            return
        self._waiting.append((self._loop.time(), on_reply))
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout * (1 - GRACE), self._check)

    def call(self, *command: str | bytes | int) -> "asyncio.Future[Any]":
        """Send a command; return its future reply, or the exception that came instead, as a value."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(lambda reply: None if future.done() else future.set_result(reply), *command)
        return future

    def data_received(self, data: bytes) -> None:
        """Hand each reply to the command it answers."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                if type(reply) is hiredis.PushNotification:
                    self._on_push(reply)
                else:
                    self._waiting.popleft()[1](reply)
        except hiredis.ProtocolError as error:
            self._lose(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what still waits."""
        self._lose(error or ConnectionError("Redis closed the connection"))

    def close(self) -> None:
        """Close the connection and fail what still waits; `on_lost` is not told."""
        self._end(ConnectionError("closed"))

    def _check(self) -> None:
        """Lose the connection if the oldest command has waited too long; else look again when it would have.

        A process that was busy has perhaps not sent the command, or not read the reply: it gets a last chance to.
        """
        self._timer = None
        if not self._waiting:
            return
        oldest = self._waiting[0]
        left = oldest[0] + self._timeout * (1 - GRACE) - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        elif oldest is not self._overdue:
            self._overdue = oldest
            self._timer = self._loop.call_later(self._timeout * GRACE, self._check)
        else:
            self._lose(TimeoutError("Redis did not answer in time"))

    def _lose(self, error: Exception) -> None:
        if not self.lost:
            self._end(error)
            self._on_lost(error)

    def _end(self, error: Exception) -> None:
        self.lost = self.lost or error
        if self._timer:
            self._timer.cancel()
        self._transport.abort()
        while self._waiting:
            self._waiting.popleft()[1](error)
