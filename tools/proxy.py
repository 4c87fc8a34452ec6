"""A TCP proxy that stands between a service and a server, and does to the traffic what networks do.

`python -m tools.proxy PORT:SERVER_PORT ...` runs proxies that only pass bytes on, for faults of the process itself.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress


class Proxy:
    """Passes bytes on; its attributes say what goes wrong from now on, for connections that are open, too.

    latency: delay of every piece, each way, in s.
    blackhole: swallow all, and close nothing.
    refuse: close each new connection at once.
    cut_at: close a connection whose client sends these bytes, which do not get through; once.
    cut_after: the same, but they get through, and it is the server's answer that does not; once.
    lose: swallow each piece of the server's that begins with these bytes; `lost` counts them.
    """

    def __init__(self) -> None:
        """Do nothing to the traffic yet."""
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
                await self._pass_on(client, to_server, server, to_client)
        finally:
            self._open -= {to_client, to_server}
            to_client.transport.abort()
            to_server.transport.abort()

    async def _pass_on(
        self,
        client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes on both ways until one side ends or the connection is cut."""
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
async def proxy(port: int, listen: int = 0) -> AsyncIterator[Proxy]:
    """Run a proxy to a port of this machine; it listens on the port `listen`, on a free one for 0."""
    between = Proxy()
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(between.serve(reader, writer, port))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", listen)
    between.port = server.sockets[0].getsockname()[1]
    try:
        yield between
    finally:
        server.close()
        between.reset()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()


async def main(*pairs: str) -> None:
    """Run a proxy for each PORT:SERVER_PORT, until the process is ended."""
    async with AsyncExitStack() as stack:
        for pair in pairs:
            listen, port = map(int, pair.split(":"))
            await stack.enter_async_context(proxy(port, listen))
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
