"""Serves Prometheus metrics over HTTP on the event loop: an idle client takes a socket, and no thread."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from libs.listener import Listener, Tls

MOST_CONNECTIONS = 32  # if there are more, the oldest is closed
MOST_HEAD_BYTES = 16 * 1024
CHECK_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0  # for a whole scrape, from its connection on

TlsFiles: TypeAlias = tuple[Path, Path, Path | None]

_NO_GET = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def serve_metrics(
    host: str, port: int, registry: CollectorRegistry, *, share_port: bool, tls_files: TlsFiles | None = None
) -> AsyncIterator[None]:
    """Answer each GET with the metrics until the block ends. Raises: OSError if it can't listen.

    With the files of a certificate, its key and the clients' CAs it speaks TLS, and follows their changes.
    """
    scrapes = _Scrapes(registry)
    listener = Listener(scrapes.protocol, Tls(*tls_files) if tls_files else None, "http/1.1", TIMEOUT_SECONDS)
    listener.require_certificate()
    for listening in await _sockets(host, port, share_port):
        listener.add(listening)
    following: asyncio.Task[None] | None = None
    try:
        await listener.accept()
        following = asyncio.create_task(_follow(listener))
        yield
    finally:
        if following:
            following.cancel()
        listener.close()
        scrapes.end()


async def _sockets(host: str, port: int, share_port: bool) -> list[socket.socket]:
    """Return a socket for each address of a host. Raises: OSError if one can't be used."""
    server = await asyncio.get_running_loop().create_server(
        asyncio.Protocol, host.strip("[]"), port, reuse_port=share_port, start_serving=False
    )
    try:
        return [each.dup() for each in server.sockets]
    finally:
        server.close()


async def _follow(listener: Listener) -> None:
    """Look for another certificate every second."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        await listener.follow()


class _Scrapes:
    """The connections, oldest first."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._collecting = asyncio.Lock()

    def protocol(self) -> asyncio.StreamReaderProtocol:
        """Return the protocol of a connection."""
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(MOST_HEAD_BYTES), self.answer)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the one request of a connection."""
        task: Any = asyncio.current_task()
        if len(self._tasks) >= MOST_CONNECTIONS:
            oldest = next(iter(self._tasks))
            del self._tasks[oldest]
            oldest.cancel()
        self._tasks[task] = None
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    writer.write(await self._reply(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            self._tasks.pop(task, None)
            writer.transport.abort()  # nothing is left to send, or the client does not take it

    def end(self) -> None:
        """Close all."""
        for task in self._tasks:
            task.cancel()

    async def _reply(self, head: bytes) -> bytes:
        first, *headers = head.decode("latin-1").split("\r\n")
        if not first.startswith("GET "):
            return _NO_GET
        fields = dict(header.lower().partition(": ")[::2] for header in headers)
        encode, content_type = choose_encoder(fields.get("accept", ""))
        async with self._collecting:  # in a thread: workers read files
            body = await asyncio.to_thread(encode, self._registry)
        about = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close"
        return f"HTTP/1.1 200 OK\r\n{about}\r\n\r\n".encode() + body
