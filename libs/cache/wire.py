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
GRACE_SECONDS = 0.001
_INCOMPLETE = object()


class Wire(asyncio.Protocol):
    """A connection; `on_lost` is told, once, why it can't be used any more."""

    def __init__(self, connection: Any, timeout: float, on_lost: Callable[[Exception], None]) -> None:
        """Take over what redis-py has connected; a reply that takes longer than `timeout` s loses the connection."""
        self._stream = connection._writer  # kept: it closes its transport when it is collected
        connection._reader = connection._writer = None  # redis-py has nothing left to close
        self._transport: asyncio.Transport = self._stream.transport
        self._timeout = timeout
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[float, OnReply]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = False
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
            self._timer = self._loop.call_later(self._timeout, self._check)

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

        If this process was busy meanwhile the reply may be here, unread: the loop gets one more chance to read it.
        """
        self._timer = None
        if not self._waiting:
            self._overdue = False
            return
        left = self._waiting[0][0] + self._timeout - self._loop.time()
        if left <= 0 and self._overdue:
            self._lose(TimeoutError("Redis did not answer in time"))
        else:
            self._overdue = left <= 0
            self._timer = self._loop.call_later(max(left, GRACE_SECONDS), self._check)

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
