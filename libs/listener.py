"""Listening sockets whose TLS certificate may change."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# For TLS 1.2; all ciphers of 1.3 are as strong. No CBC, no SHA-1, no key exchange without forward secrecy.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
BACKLOG = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tls:
    """The files of a server's certificate and key, in PEM.

    With `client_ca_file` a client must have a certificate signed by one of these CAs; with `is_client_optional` it may
    have none.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    is_client_optional: bool = field(default=False, kw_only=True)

    def context(self, protocol: str) -> ssl.SSLContext:
        """Read the files; `protocol` is that of ALPN. Raises: OSError, ssl.SSLError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols([protocol])
        context.load_cert_chain(self.cert_file, self.key_file)
        if self.client_ca_file is not None:
            context.load_verify_locations(self.client_ca_file)
            context.verify_mode = ssl.CERT_OPTIONAL if self.is_client_optional else ssl.CERT_REQUIRED
        return context

    def changed(self) -> tuple[int, ...]:
        """Return when each file was last changed, in ns. Raises: OSError."""
        files = filter(None, (self.cert_file, self.key_file, self.client_ca_file))
        return tuple(file.stat().st_mtime_ns for file in files)


class Listener:
    """Accepts connections on sockets, with TLS if it has a certificate.

    `make_protocol` returns the protocol of a connection, `alpn` is its name in TLS. A client has `handshake_timeout`
    seconds for the handshake of TLS, and as long for its end.
    """

    def __init__(
        self, make_protocol: Callable[[], asyncio.BaseProtocol], tls: Tls | None, alpn: str, handshake_timeout: float
    ) -> None:
        """Accept nothing before `accept`."""
        self._make_protocol = make_protocol
        self._tls, self._alpn = tls, alpn
        self._timeout = None if tls is None else handshake_timeout
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._changed: tuple[int, ...] = ()
        self._failed = ""

    def add(self, listening: socket.socket) -> None:
        """Add a socket that listens."""
        self._sockets.append(listening)

    def require_certificate(self) -> None:
        """Return if the certificate can be used, or none is needed. Raises: OSError."""
        if self._tls is not None:
            self._tls.context(self._alpn)

    async def accept(self) -> None:
        """Accept connections, with the certificate of now. Raises: OSError; then the one before stays in use."""
        changed, context = self._changed, None
        if self._tls is not None:
            changed, context = self._tls.changed(), self._tls.context(self._alpn)
        loop = asyncio.get_running_loop()
        servers = [
            await loop.create_server(
                self._make_protocol,
                sock=listening.dup(),  # the socket stays open when the certificate changes
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=self._timeout,
                ssl_shutdown_timeout=self._timeout,
            )
            for listening in self._sockets
        ]
        before, self._servers, self._changed = self._servers, servers, changed
        # asyncio, unlike uvloop, begins a connection one turn of the loop after it accepted it, and forgets it if the
        # server is closed in between. So these servers stop accepting a turn before they are closed.
        for server in before:
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())
        await asyncio.sleep(0)
        for server in before:
            server.close()

    async def follow(self) -> None:
        """Accept connections with another certificate if its files have changed; if they can't be read, log it once."""
        if self._tls is None:
            return
        try:
            if self._tls.changed() == self._changed:
                return
            await self.accept()
        except OSError as error:
            if self._failed != str(error):
                log.warning("the certificate can't be read, the last one stays in use: %s", error)
            self._failed = str(error)
        else:
            self._failed = ""
            log.info("the certificate was read again")

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()
        for listening in self._sockets:
            listening.close()
