"""Serves Prometheus metrics over HTTP on the event loop: an idle client takes a socket, and no thread."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

MOST_CONNECTIONS = 32  # if there are more, the oldest is closed
MOST_HEAD_BYTES = 16 * 1024
TIMEOUT_SECONDS = 5.0  # for a whole scrape, from its connection on

_NO_GET = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def serve_metrics(host: str, port: int, registry: CollectorRegistry, *, share_port: bool) -> AsyncIterator[None]:
    """Answer each GET with the metrics until the block ends. Raises: OSError if it can't listen."""
    scrapes = _Scrapes(registry)
    server = await asyncio.start_server(
        scrapes.answer, host.strip("[]"), port, limit=MOST_HEAD_BYTES, reuse_port=share_port
    )
    try:
        yield
    finally:
        server.close()
        scrapes.end()


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
