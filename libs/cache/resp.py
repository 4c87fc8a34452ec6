"""A pipelined connection to Redis, in RESP, for the few commands that every RPC needs.

Commands are sent as they are made, and replies are matched to them in order, by hiredis alone: about half of what a
command costs through redis-py (measured, decision 0005). A caller that stops waiting leaves its place in the queue, so
that no reply meets another's command.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import hiredis
from redis.asyncio.connection import SSLConnection
from redis.exceptions import ResponseError

OnReply = Callable[[Any], None]
GRACE = 0.1  # of the timeout: time to read a reply that has arrived, after the rest has passed
DEFAULT_PORT = 6379
HANDSHAKE = 10  # of the timeout: a handshake of TLS takes two more round trips and some milliseconds of each CPU
_INCOMPLETE = object()


class RespConnection(asyncio.Protocol):
    """A connection. `on_push` gets the server's pushes; `on_lost` is called once, when the connection is lost."""

    def __init__(self, timeout: float) -> None:
        """Prepare. A reply that takes longer than `timeout` s loses the connection."""
        self.on_lost: Callable[[Exception], None] = lambda _: None
        self.on_push: Callable[[list[Any]], None] = lambda _: None
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[float, OnReply]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: tuple[float, OnReply] | None = None
        self._transport: asyncio.Transport
        self.lost: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = transport  # type: ignore[assignment]

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
        """Send a command; return its future reply. An exception that came instead is the result, not raised."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(lambda reply: None if future.done() else future.set_result(reply), *command)
        return future

    def data_received(self, data: bytes) -> None:
        """Pass each reply to the callback of its command."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                if type(reply) is hiredis.PushNotification:
                    self.on_push(reply)
                else:
                    self._waiting.popleft()[1](reply)
        except hiredis.ProtocolError as error:
            self._lose(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the commands that still wait."""
        self._lose(error or ConnectionError("Redis closed the connection"))

    def close(self) -> None:
        """Close the connection and fail the commands that still wait, without calling `on_lost`."""
        self._end(ConnectionError("closed"))

    def _check(self) -> None:
        """Lose the connection if the oldest command has waited too long; otherwise check again when it would have.

        A process that was busy may not have sent the command or read the reply yet: it gets a last chance.
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
            self.on_lost(error)

    def _end(self, error: Exception) -> None:
        self.lost = self.lost or error
        if self._timer:
            self._timer.cancel()
        self._transport.abort()
        while self._waiting:
            self._waiting.popleft()[1](error)


async def connect(options: Mapping[str, Any], timeout: float) -> RespConnection:  # noqa: ASYNC109 - of commands, too
    """Connect and log in; `options` are those of a URL, as redis-py parses it. Raises: ResponseError, OSError."""
    loop, tls = asyncio.get_running_loop(), _tls(options)

    def protocol() -> RespConnection:
        return RespConnection(timeout)

    async with asyncio.timeout(timeout if tls is None else timeout * HANDSHAKE):
        if "path" in options:
            _, connection = await loop.create_unix_connection(protocol, options["path"])
        else:
            host, port = options.get("host", "localhost"), options.get("port", DEFAULT_PORT)
            _, connection = await loop.create_connection(protocol, host, port, ssl=tls)
    try:
        if options.get("password"):
            await ask(connection, "AUTH", *filter(None, [options.get("username")]), options["password"])
        if options.get("db"):
            await ask(connection, "SELECT", options["db"])
    except BaseException:
        connection.close()
        raise
    return connection


async def ask(connection: RespConnection, *command: str | bytes | int) -> Any:
    """Return the reply to a command. Raises: ResponseError, OSError."""
    reply = await connection.call(*command)
    if isinstance(reply, OSError):
        raise reply
    if isinstance(reply, Exception):
        raise ResponseError(f"{command[0]!s}: {reply}") from reply
    return reply


def _tls(options: Mapping[str, Any]) -> Any:
    kind = options.get("connection_class")
    if kind is None or not issubclass(kind, SSLConnection):
        return None
    wanted = kind(**{name: value for name, value in options.items() if name.startswith("ssl_")}).ssl_context
    authorities = {"cafile": wanted.ca_certs, "capath": wanted.ca_path, "cadata": wanted.ca_data}
    if not any(authorities.values()):
        return wanted.get()
    # redis-py would also trust the authorities of the system, which take 25 ms to read.
    context = ssl.create_default_context(**authorities)
    context.check_hostname, context.verify_mode = wanted.check_hostname, wanted.cert_reqs
    if wanted.certfile or wanted.keyfile:
        context.load_cert_chain(wanted.certfile, wanted.keyfile, wanted.password)
    if wanted.min_version is not None:
        context.minimum_version = wanted.min_version
    if wanted.ciphers is not None:
        context.set_ciphers(wanted.ciphers)
    return context
