"""A TCP proxy between a service and a server that injects network faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Forwards bytes. Its attributes select faults, for open connections too.

    latency: delay of each chunk, in each direction, in s.
    blackhole: drop all bytes, but close nothing.
    refuse: close each new connection at once.
    cut_at: close the connection when the client sends these bytes, and don't forward them; once.
    cut_after: the same, but forward them, and drop the server's answer; once.
    lose: drop each chunk of the server that begins with these bytes; `lost` counts them.
    """

    def __init__(self) -> None:
        """Inject no fault yet."""
        self.port = 0
        self.latency = 0.0
        self.blackhole = False
        self.refuse = False
        self.cut_at: bytes | None = None
        self.cut_after: bytes | None = None
        self.lose: bytes | None = None
        self.lost = 0
        self._open: set[asyncio.StreamWriter] = set()

    def reset(self) -> None:
        """Break all connections."""
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter, port: int) -> None:
        """Serve one connection."""
        try:
            if self.refuse:
                raise ConnectionRefusedError
            server, to_server = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            to_client.transport.abort()
            return
        self._open |= {to_client, to_server}
        try:
            with suppress(OSError):
                await self._forward(client, to_server, server, to_client)
        finally:
            self._open -= {to_client, to_server}
            to_client.transport.abort()
            to_server.transport.abort()

    async def _forward(
        self,
        client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> None:
        """Forward bytes in both directions until one side ends or the connection is cut."""
        silent = asyncio.Event()

        async def up() -> None:
            while data := await client.read(65_536):
                if self.cut_at and self.cut_at in data:
                    self.cut_at = None
                    return
                if self.cut_after and self.cut_after in data:
                    self.cut_after = None
                    silent.set()
                await self._send(to_server, data)

        async def down() -> None:
            while data := await server.read(65_536):
                if silent.is_set():
                    return
                if self.lose and data.startswith(self.lose):
                    self.lost += 1
                    continue
                await self._send(to_client, data)

        ways = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self.latency:
            await asyncio.sleep(self.latency)
        if not self.blackhole:
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[Proxy]:
    """Run a proxy to a port of this machine; `Proxy.port` is where it listens."""
    between = Proxy()
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(between.serve(reader, writer, port))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    between.port = server.sockets[0].getsockname()[1]
    try:
        yield between
    finally:
        server.close()
        between.reset()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
