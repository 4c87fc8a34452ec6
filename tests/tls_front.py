"""A TLS-only port in front of a server that has no TLS: it answers no plain connection.

For Postgres it takes part in the negotiation (SSLRequest). Certificates are those of `parlor dev-certs`.
"""

import asyncio
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from ops.process import free_port

GSS_REQUEST, SSL_REQUEST = 80877104, 80877103
REFUSED = b'SFATAL\0C28000\0Mno pg_hba.conf entry for host "127.0.0.1", no encryption\0\0'
READ_BYTES = 65_536


class Front:
    """A port, which passes on what it decrypts to a port or socket. It counts its connections."""

    def __init__(self, target: int | Path, certificates: Path, *, postgres: bool) -> None:
        """Choose a port; nothing listens yet."""
        self.port = free_port()
        self.accepted = 0
        self.refused = 0
        self.local_ports = set[int]()  # of the connections to the target, if the target is a port
        self._target, self._postgres = target, postgres
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificates / "server.pem", certificates / "server.key")

    async def serve(self, ready: Event, over: asyncio.Event) -> None:
        """Serve until it is over."""
        context = None if self._postgres else self._context
        async with await asyncio.start_server(self._answer, "127.0.0.1", self.port, ssl=context):
            ready.set()
            await over.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            if self._postgres and not await self._negotiate(reader, writer):
                self.refused += 1
                writer.write(b"E" + struct.pack("!i", len(REFUSED) + 4) + REFUSED)
                writer.close()
                return
            self.accepted += 1
            if isinstance(self._target, int):
                server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
                self.local_ports.add(to_server.get_extra_info("sockname")[1])
            else:
                server, to_server = await asyncio.open_unix_connection(self._target)
            await asyncio.gather(_copy(reader, to_server), _copy(server, writer))

    async def _negotiate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Return whether the client has asked for TLS, and speaks it now."""
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            if (length, code) != (8, GSS_REQUEST):
                break
            writer.write(b"N")
        if (length, code) != (8, SSL_REQUEST):
            return False
        writer.write(b"S")
        await writer.start_tls(self._context)
        return True


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(READ_BYTES):
            target.write(data)
            await target.drain()
    finally:
        target.close()


@contextmanager
def tls_front(target: int | Path, certificates: Path, *, postgres: bool = False) -> Iterator[Front]:
    """Serve on a thread until the block ends. `target` is a port of 127.0.0.1 or the path of a socket."""
    front, ready = Front(target, certificates, postgres=postgres), Event()
    loop, over = asyncio.new_event_loop(), asyncio.Event()
    thread = Thread(target=lambda: loop.run_until_complete(front.serve(ready, over)))
    thread.start()
    try:
        assert ready.wait(10)
        yield front
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
