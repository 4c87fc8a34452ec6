"""The transport of RPCs: our server on libnghttp2, or grpcio's, behind one interface (decision 0027)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

# grpcio reads this when it is imported. By default its pollers pass each RPC from thread to thread; without them a
# server polls in one thread, which takes about a sixth less CPU for one RPC at a time (decision 0027).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

import grpc
import structlog

from libs.server.errors import PUSHBACK, RpcError
from libs.server.parsing import parsing
from libs.server.settings import LARGEST_MESSAGE_BYTES, ServerSettings

if TYPE_CHECKING:
    from libs.http2 import Counters

MOST_PENDING = 100_000
HANDSHAKE_MS = 10_000  # as Limits.handshake_timeout
NONE: Mapping[str, int] = MappingProxyType({})

log = structlog.get_logger()


class Transport(Protocol):
    """A gRPC server. Generated servicers are added to it before it starts."""

    @property
    def counters(self) -> "Counters | None":
        """The counters of the transport; None if it has none."""

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add handlers, which are asked for the method of each call."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""

    def listen(self, address: str) -> int:
        """Listen on `host:port` or `unix:path`; return the port. Raises: OSError, ValueError."""

    async def start(self) -> None:
        """Begin to serve."""

    def retire(self) -> None:
        """Send GOAWAY to the clients, but serve them and new ones until `stop`."""

    async def stop(self, grace: float) -> None:
        """Refuse new calls; end those that take longer than `grace` seconds."""


def make_transport(
    settings: ServerSettings,
    handlers: Sequence[grpc.GenericRpcHandler],
    largest: int = LARGEST_MESSAGE_BYTES,
    largest_of: Mapping[str, int] = NONE,
    *,
    share_port: bool,
) -> Transport:
    """Return the server of SERVER_TRANSPORT; grpcio's if ngh2 is not installed.

    `largest` is the size of the largest request message in bytes, `largest_of` that of single methods, by path.
    grpcio's server has one limit for all, so handlers must check the size, too.
    """
    if settings.server_transport == "http2":
        try:
            return _http2(settings, handlers, largest, largest_of, share_port)
        except ImportError as error:
            log.warning("ngh2 can't be imported: serving on grpcio", error=str(error))
    return GrpcioTransport(settings, handlers, max([largest, *largest_of.values()]), share_port=share_port)


def _http2(
    settings: ServerSettings,
    handlers: Sequence[grpc.GenericRpcHandler],
    largest: int,
    largest_of: Mapping[str, int],
    share_port: bool,
) -> Transport:
    from libs.http2 import Limits, Server, Tls

    limits = Limits(
        max_message=largest,
        max_messages=largest_of,
        max_receiving=settings.max_receiving,
        max_sending=settings.max_sending,
        max_calls=settings.max_calls,
        max_connections=settings.max_connections,
        max_concurrent_streams=settings.max_concurrent_streams,
        max_connection_age=settings.max_connection_age / 1000,
        max_connection_age_grace=settings.max_connection_age_grace / 1000,
        max_connection_idle=settings.max_connection_idle / 1000,
        keepalive_time=settings.keepalive_time / 1000,
        keepalive_timeout=settings.keepalive_timeout / 1000,
        send_timeout=settings.send_timeout / 1000,
        receive_timeout=settings.receive_timeout / 1000,
    )
    files = settings.tls_files
    # A caller with a token needs no certificate. grpcio's server can't ask for one without requiring it.
    is_optional = settings.takes_tokens and settings.takes_certificates
    tls = None if files is None else Tls(*files, is_client_optional=is_optional)
    return Server(
        handlers,
        limits,
        tls=tls,
        share_port=share_port,
        explain=lambda refused: _explained(refused.code, refused.details, refused.trailers),
    )


@lru_cache(64)
def _explained(code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str], ...]) -> Any:
    """Return the trailers of an error of the transport, with our error details."""
    pushback = next((value for name, value in trailers if name == PUSHBACK), None)
    reasons = {
        grpc.StatusCode.INVALID_ARGUMENT: "MALFORMED_REQUEST",
        grpc.StatusCode.RESOURCE_EXHAUSTED: "OVERLOADED" if pushback else "REQUEST_TOO_LARGE",
    }
    retry_ms = int(pushback) if pushback else None
    error = RpcError(code, reasons.get(code, code.name), details, retry_ms=retry_ms)
    return *(each for each in trailers if each[0] != PUSHBACK), *error.trailing_metadata()


class GrpcioTransport:
    """grpcio's server."""

    counters: "Counters | None" = None

    def __init__(
        self,
        settings: ServerSettings,
        handlers: Sequence[grpc.GenericRpcHandler],
        largest: int,
        *,
        share_port: bool,
    ) -> None:
        """`largest` is the size of the largest request, in bytes. Nothing listens before `listen`."""
        options = {
            "grpc.max_receive_message_length": largest,
            "grpc.max_send_message_length": LARGEST_MESSAGE_BYTES,
            "grpc.so_reuseport": int(share_port),
            "grpc.max_connection_age_grace_ms": settings.max_connection_age_grace,
            "grpc.keepalive_timeout_ms": settings.keepalive_timeout,
            "grpc.http2.min_ping_interval_without_data_ms": 1000,
            "grpc.server_handshake_timeout_ms": HANDSHAKE_MS,
            # By default the core cancels RPCs that wait for the event loop, without a reason: some over 1000, all over
            # 3000. With this they wait, and Dispatcher answers OVERLOADED. max_concurrent_streams is not set, since
            # streams over it that arrive before the client knows the limit fail with UNAVAILABLE.
            "grpc.server.max_pending_requests": MOST_PENDING,
            "grpc.server.max_pending_requests_hard_limit": MOST_PENDING,
        }
        unlimited = {
            "grpc.max_connection_age_ms": settings.max_connection_age,
            "grpc.max_connection_idle_ms": settings.max_connection_idle,
            "grpc.keepalive_time_ms": settings.keepalive_time,
        }
        options |= {name: value for name, value in unlimited.items() if value}
        self._server = grpc.aio.server(handlers=handlers, options=list(options.items()))
        self._tls_files = settings.tls_files

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add handlers, which are asked for the method of each call."""
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        self._server.add_registered_method_handlers(service, {name: parsing(each) for name, each in handlers.items()})

    def listen(self, address: str) -> int:
        """Listen on `host:port` or `unix:path`; return the port. Raises: OSError, ValueError."""
        try:
            if self._tls_files is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(self._tls_files))
        except RuntimeError as error:  # grpc gives no other reason
            raise OSError("is the port in use?") from error

    async def start(self) -> None:
        """Begin to serve."""
        await self._server.start()

    def retire(self) -> None:
        """Do nothing: grpcio can't send GOAWAY before it refuses calls."""

    async def stop(self, grace: float) -> None:
        """Refuse new calls; end those that take longer than `grace` seconds."""
        await self._server.stop(grace)


def _credentials(files: tuple[Path, Path, Path | None]) -> grpc.ServerCredentials:
    """Return credentials that follow changes of their files. Raises: OSError."""
    cert_file, key_file, client_ca_file = files
    used: list[list[int]] = []

    def read_changed() -> Any:
        changed = [file.stat().st_mtime_ns for file in files if file]
        if used == [changed]:
            return None
        used[:] = [changed]
        return read()

    def read() -> grpc.ServerCertificateConfiguration:
        authorities = None if client_ca_file is None else client_ca_file.read_bytes()
        pair = key_file.read_bytes(), cert_file.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    return grpc.dynamic_ssl_server_credentials(read(), read_changed, client_ca_file is not None)
