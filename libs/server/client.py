"""Channels to our own services: what is safe to repeat is retried.

What is safe stands in the protos: reads are NO_SIDE_EFFECTS, some mutations IDEMPOTENT; any other is retried only if
its request has a request_id, which is filled in where the caller left it empty.
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
    """Return the gRPC service config that retries what is safe to repeat."""
    names = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if _may_repeat(method)
    ]
    return {"methodConfig": [{"name": names, "retryPolicy": RETRY_POLICY}]}


def channel(address: str, *services: ServiceDescriptor) -> grpc.aio.Channel:
    """Return a channel that retries RPCs of `services` while they are UNAVAILABLE, as far as that is safe."""
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
    """Gives a request_id to each request that has the field and no value in it."""

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        """Call on, with a copy of the request if it was changed."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
            filled = type(request)()
            filled.CopyFrom(request)
            filled.request_id = str(uuid4())
            request = filled
        return await continuation(client_call_details, request)
