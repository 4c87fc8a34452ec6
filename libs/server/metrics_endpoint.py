"""Serves Prometheus metrics over HTTP on the event loop: an idle client takes a socket, and no thread."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

MOST_CONNECTIONS = 32  # if there are more, the oldest is closed
MOST_HEAD_BYTES = 16 * 1024
CHECK_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0  # for a whole scrape, from its connection on

TlsFiles: TypeAlias = tuple[Path, Path, Path | None]

log = structlog.get_logger()

_NO_GET = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def serve_metrics(
    host: str, port: int, registry: CollectorRegistry, *, share_port: bool, tls_files: TlsFiles | None = None
) -> AsyncIterator[None]:
    """Answer each GET with the metrics until the block ends. Raises: OSError if it can't listen.

    With the files of a certificate, its key and the clients' CAs it speaks TLS, and follows their changes.
    """
    scrapes = _Scrapes(registry)
    listening = await asyncio.start_server(
        scrapes.answer, host.strip("[]"), port, limit=MOST_HEAD_BYTES, reuse_port=share_port, start_serving=False
    )
    listener = _Listener(scrapes, [each.dup() for each in listening.sockets], tls_files)
    listening.close()
    following: asyncio.Task[None] | None = None
    try:
        await listener.accept()
        following = asyncio.create_task(listener.follow())
        yield
    finally:
        if following:
            following.cancel()
        listener.close()
        scrapes.end()


class _Listener:
    """Accepts connections on sockets, with the current certificate."""

    def __init__(self, scrapes: "_Scrapes", sockets: list[socket.socket], tls_files: TlsFiles | None) -> None:
        self._scrapes, self._sockets = scrapes, sockets
        self._tls: Any = None
        if tls_files is not None:
            from libs.http2 import Tls  # needs ngh2, which is missing on some systems

            self._tls = Tls(*tls_files)
        self._changed: tuple[int, ...] = ()
        self._servers: list[asyncio.Server] = []

    async def accept(self) -> None:
        """Accept connections, with the certificate of now. Raises: OSError."""
        context = None
        if self._tls is not None:
            self._changed, context = self._tls.changed(), self._tls.context("http/1.1")
        before, self._servers = (
            self._servers,
            [
                await asyncio.start_server(self._scrapes.answer, sock=each.dup(), limit=MOST_HEAD_BYTES, ssl=context)
                for each in self._sockets
            ],
        )
        for server in before:
            server.close()

    async def follow(self) -> None:
        """Look for another certificate every second."""
        while self._tls is not None:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                if self._tls.changed() != self._changed:
                    await self.accept()
            except OSError as error:
                log.warning("the certificate can't be read, the last one stays in use", error=str(error))

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()
        for each in self._sockets:
            each.close()


class _Scrapes:
    """The connections, oldest first."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._collecting = asyncio.Lock()

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
        finally:
            self._tasks.pop(task, None)
            writer.close()

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
