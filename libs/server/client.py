"""Channels to our own services, which retry RPCs that are safe to repeat.

These are reads (NO_SIDE_EFFECTS in the proto), IDEMPOTENT methods, and methods whose request has a request_id. An
empty request_id is filled in.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
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


def channel(address: str, *services: ServiceDescriptor) -> grpc.aio.Channel:
    """Return a channel that retries UNAVAILABLE RPCs of `services` if they are safe to repeat."""
    options = [
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(service_config(*services))),
        ("grpc.max_receive_message_length", 16 * 1024 * 1024),
        ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ]
    return grpc.aio.insecure_channel(address, options=options, interceptors=[FillRequestId()])


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
