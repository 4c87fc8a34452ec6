"""Channels to our own services, which retry RPCs that are safe to repeat.

These are reads (NO_SIDE_EFFECTS in the proto), IDEMPOTENT methods, and methods whose request has a request_id. An
empty request_id is filled in.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
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
CHECK_SECONDS = 1.0  # how often the files of a certificate are looked at, while there are calls
CLOSE_SECONDS = 30.0  # for the calls on a channel that is replaced
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


log = structlog.get_logger()


@dataclass(frozen=True)
class ClientTls:
    """The files, in PEM, of the CAs that servers must be signed by, and of the own certificate and its key."""

    ca_file: Path
    cert_file: Path | None = None
    key_file: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises: OSError."""
        key = self.key_file.read_bytes() if self.key_file else None
        certificate = self.cert_file.read_bytes() if self.cert_file else None
        return grpc.ssl_channel_credentials(self.ca_file.read_bytes(), key, certificate)

    def changed(self) -> tuple[int, ...]:
        """Return when each file was last changed, in ns. Raises: OSError."""
        return tuple(file.stat().st_mtime_ns for file in (self.ca_file, self.cert_file, self.key_file) if file)


def channel(address: str, *services: ServiceDescriptor, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """Return a channel that retries UNAVAILABLE RPCs of `services` if they are safe to repeat. Raises: OSError."""
    options = [
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(service_config(*services))),
        ("grpc.max_receive_message_length", 16 * 1024 * 1024),
        ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=[FillRequestId()])
    return grpc.aio.secure_channel(address, tls.credentials(), options=options, interceptors=[FillRequestId()])


class Peer:
    """A service of ours that this one calls. A changed certificate is used without a restart.

    grpcio's channels can't change their credentials, so `stub` is then that of a new channel.
    """

    def __init__(
        self, address: str, service: ServiceDescriptor, stub: Callable[[Any], Any], tls: ClientTls | None = None
    ) -> None:
        """Open a channel; `stub` makes a stub of one. Raises: OSError if a file can't be read."""
        self._open: Callable[[], grpc.aio.Channel] = lambda: channel(address, service, tls=tls)
        self._tls, self._make_stub = tls, stub
        self._changed = tls.changed() if tls else ()
        self._checked = time.monotonic()
        self._channel = self._open()
        self._stub = stub(self._channel)
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def stub(self) -> Any:
        """The stub for the next call; don't keep it."""
        if self._tls is not None and (now := time.monotonic()) - self._checked > CHECK_SECONDS:
            self._checked = now
            try:
                self._renew(self._tls)
            except OSError as error:
                log.warning("the certificate can't be read, the last one stays in use", error=str(error))
        return self._stub

    def _renew(self, tls: ClientTls) -> None:
        if (changed := tls.changed()) == self._changed:
            return
        opened, before = self._open(), self._channel
        self._changed, self._channel, self._stub = changed, opened, self._make_stub(opened)
        task = asyncio.create_task(before.close(CLOSE_SECONDS))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the channels."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close()


def _may_repeat(method: MethodDescriptor) -> bool:
    level = method.GetOptions().idempotency_level
    return level in _SAFE or "request_id" in method.input_type.fields_by_name


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
