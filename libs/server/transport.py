"""What carries the RPCs: our own server on libnghttp2 or grpcio's, behind one interface (decision 0027)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

# grpcio reads this when it is imported. By default its pollers hand each RPC from thread to thread; without them a
# server polls in one thread, which takes about a sixth less CPU one by one (decision 0015).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

import grpc
import structlog

from libs.server.errors import PUSHBACK, RpcError
from libs.server.settings import LARGEST_MESSAGE_BYTES, ServerSettings

if TYPE_CHECKING:
    from libs.http2 import Counters

MOST_PENDING = 100_000
NONE: Mapping[str, int] = MappingProxyType({})

log = structlog.get_logger()


class Transport(Protocol):
    """A server of gRPC: generated servicers are added to it before it starts."""

    @property
    def counters(self) -> "Counters | None":
        """What it has seen; None if it does not count."""

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add handlers that are asked for each call's method."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""

    def listen(self, address: str) -> int:
        """Listen on `host:port` or `unix:path`; return the port. Raises: OSError, ValueError."""

    async def start(self) -> None:
        """Begin to serve."""

    def retire(self) -> None:
        """Send the clients to other servers, but serve them, and new ones, until `stop`."""

    async def stop(self, grace: float) -> None:
        """Take no new calls; end those that take longer than `grace` seconds."""


def make_transport(
    settings: ServerSettings,
    handlers: Sequence[grpc.GenericRpcHandler],
    largest: int = LARGEST_MESSAGE_BYTES,
    largest_of: Mapping[str, int] = NONE,
    *,
    share_port: bool,
) -> Transport:
    """Return the server that the settings name; grpcio's if ngh2 is not installed.

    `largest` is the size of the largest message of a request in bytes; `largest_of` has that of single methods, by
    path. grpcio's server has one limit for all: there a handler must check its own.
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
    tls = None if files is None else Tls(*files)
    return Server(
        handlers,
        limits,
        tls=tls,
        share_port=share_port,
        explain=lambda refused: _explained(refused.code, refused.details, refused.trailers),
    )


@lru_cache(64)
def _explained(code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str], ...]) -> Any:
    """Return the metadata of a refusal, with what every error of ours carries."""
    pushback = next((value for name, value in trailers if name == PUSHBACK), None)
    reasons = {
        grpc.StatusCode.INVALID_ARGUMENT: "MALFORMED_REQUEST",
        grpc.StatusCode.RESOURCE_EXHAUSTED: "OVERLOADED" if pushback else "REQUEST_TOO_LARGE",
    }
    retry_ms = int(pushback) if pushback else None
    error = RpcError(code, reasons.get(code, code.name), details, retry_ms=retry_ms)
    return *(each for each in trailers if each[0] != PUSHBACK), *error.trailing_metadata()


class GrpcioTransport:
    """grpcio's own server."""

    counters: "Counters | None" = None

    def __init__(
        self,
        settings: ServerSettings,
        handlers: Sequence[grpc.GenericRpcHandler],
        largest: int,
        *,
        share_port: bool,
    ) -> None:
        """Prepare; nothing listens before `listen`. `largest` is the size of the largest request, in bytes."""
        options = {
            "grpc.max_receive_message_length": largest,
            "grpc.max_send_message_length": LARGEST_MESSAGE_BYTES,
            "grpc.so_reuseport": int(share_port),
            "grpc.max_connection_age_grace_ms": settings.max_connection_age_grace,
            "grpc.keepalive_timeout_ms": settings.keepalive_timeout,
            "grpc.http2.min_ping_interval_without_data_ms": 1000,
            # By default the core cancels RPCs that wait for the event loop, without a reason: some beyond 1000, all
            # beyond 3000. Here they wait, and Dispatcher says OVERLOADED. For the same reason there is no
            # max_concurrent_streams: streams beyond it, that come before the client knows of it, are UNAVAILABLE.
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
        """Add handlers that are asked for each call's method."""
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        self._server.add_registered_method_handlers(service, dict(handlers))

    def listen(self, address: str) -> int:
        """Listen on `host:port` or `unix:path`; return the port. Raises: OSError, ValueError."""
        try:
            if self._tls_files is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, _credentials(self._tls_files))
        except RuntimeError as error:  # grpc says no more than that
            raise OSError("is the port in use?") from error

    async def start(self) -> None:
        """Begin to serve."""
        await self._server.start()

    def retire(self) -> None:
        """Do nothing: grpcio has no way to send clients away before it refuses them."""

    async def stop(self, grace: float) -> None:
        """Take no new calls; end those that take longer than `grace` seconds."""
        await self._server.stop(grace)


def _credentials(files: tuple[Path, Path, Path | None]) -> grpc.ServerCredentials:
    """Return credentials that are read again when their files change. Raises: OSError."""
    cert_file, key_file, client_ca_file = files
    used: list[list[int]] = []

    def read_again() -> Any:
        changed = [file.stat().st_mtime_ns for file in files if file]
        if used == [changed]:
            return None
        used[:] = [changed]
        return read()

    def read() -> grpc.ServerCertificateConfiguration:
        authorities = None if client_ca_file is None else client_ca_file.read_bytes()
        pair = key_file.read_bytes(), cert_file.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    return grpc.dynamic_ssl_server_credentials(read(), read_again, client_ca_file is not None)
