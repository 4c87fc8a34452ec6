"""Channels to our own services, which retry RPCs that are safe to repeat.

These are reads (NO_SIDE_EFFECTS in the proto), IDEMPOTENT methods, and methods whose request has a request_id. An
empty request_id is filled in. A channel may have an identity: a client certificate, or a bearer token.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import uuid4

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
CHECK_SECONDS = 1.0  # between two looks at the files of an identity
CLOSE_SECONDS = 30.0  # for the calls of a channel that was replaced

log = structlog.get_logger()

_SAFE = (MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT)


def service_config(*services: ServiceDescriptor) -> dict[str, Any]:
    """Return the gRPC service config that retries the methods that are safe to repeat."""
    names = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if _may_repeat(method)
    ]
    return {"methodConfig": [{"name": names, "retryPolicy": RETRY_POLICY}]}


class Identity(NamedTuple):
    """The files of a client's identity, each None or a path.

    With `ca_file` the channel uses TLS, and the server must have a certificate of one of these CAs. `cert_file` and
    `key_file` are the client's certificate; `token_file` contains a bearer token. All are PEM but the token.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token_file: Path | None = None


NOBODY = Identity()


def channel(address: str, *services: ServiceDescriptor, identity: Identity = NOBODY) -> grpc.aio.Channel:
    """Return a channel that retries UNAVAILABLE RPCs of `services` if they are safe to repeat.

    When a file of the identity changes, later calls use the new one. Streams send no token. Raises: OSError if a file
    can't be read.
    """
    connect = partial(_connect, address, services, identity)
    return connect() if identity == NOBODY else cast(grpc.aio.Channel, _RenewedChannel(connect, identity))


def _connect(address: str, services: tuple[ServiceDescriptor, ...], identity: Identity) -> grpc.aio.Channel:
    options = [
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(service_config(*services))),
        ("grpc.max_receive_message_length", 16 * 1024 * 1024),
        ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ]
    interceptors: list[Any] = [FillRequestId()]
    if identity.token_file is not None:
        interceptors.append(AddToken(identity.token_file.read_text().strip()))
    if identity.ca_file is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    authorities, cert, key = (None if file is None else file.read_bytes() for file in identity[:3])
    credentials = grpc.ssl_channel_credentials(authorities, key, cert)
    return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)


class _RenewedChannel:
    """A channel that is replaced when the files of its identity change: grpcio reads them only once."""

    def __init__(self, connect: Callable[[], grpc.aio.Channel], identity: Identity) -> None:
        self._connect = connect
        self._files = [file for file in identity if file is not None]
        self._changed = self._times()
        self._checked = time.monotonic()
        self._channel = connect()
        self._closing: set[asyncio.Task[None]] = set()

    def unary_unary(self, *args: Any, **options: Any) -> Callable[..., Any]:
        """Return a unary method."""
        return lambda *call, **more: self._current().unary_unary(*args, **options)(*call, **more)

    def unary_stream(self, *args: Any, **options: Any) -> Callable[..., Any]:
        """Return a server-streaming method: a stub asks for all methods when it is made."""
        return lambda *call, **more: self._current().unary_stream(*args, **options)(*call, **more)

    async def close(self, grace: float | None = None) -> None:
        """Close the channel."""
        for task in self._closing:
            task.cancel()
        await self._channel.close(grace)

    def _times(self) -> list[int]:
        return [file.stat().st_mtime_ns for file in self._files]

    def _current(self) -> grpc.aio.Channel:
        """Return the channel, a new one if a file has changed."""
        if time.monotonic() - self._checked > CHECK_SECONDS:
            self._checked = time.monotonic()
            try:
                self._renew()
            except OSError as error:
                log.warning("the identity can't be read, the last one stays in use", error=str(error))
        return self._channel

    def _renew(self) -> None:
        if (changed := self._times()) == self._changed:
            return
        before, self._channel = self._channel, self._connect()
        self._changed = changed
        closing = asyncio.create_task(before.close(CLOSE_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _may_repeat(method: MethodDescriptor) -> bool:
    level = method.GetOptions().idempotency_level
    return level in _SAFE or "request_id" in method.input_type.fields_by_name


class AddToken(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds a bearer token to each request."""

    def __init__(self, token: str) -> None:
        self._authorization = ("authorization", f"Bearer {token}")

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        """Continue with the token in the metadata."""
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()), self._authorization)
        return await continuation(client_call_details._replace(metadata=metadata), request)


class FillRequestId(grpc.aio.UnaryUnaryClientInterceptor):
    """Fills the request_id of each request in which it is empty."""

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        """Continue, with a changed copy of the request if its request_id is empty."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            filled = type(request)()
            filled.CopyFrom(request)
            filled.request_id = str(uuid4())
            request = filled
        return await continuation(client_call_details, request)
