"""Handlers for grpcio's server that parse their requests themselves: it answers malformed ones with UNKNOWN."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError


def parsing(handler: Any) -> Any:
    """Return a generated handler that refuses malformed requests with INVALID_ARGUMENT. Its servicer is asyncio's."""
    parse, serialize = handler.request_deserializer, handler.response_serializer

    async def one(data: bytes, context: Any) -> Any:
        try:
            return parse(data)
        except DecodeError:
            text = "the bytes are no valid message of this method"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)

    async def each(requests: Any, context: Any) -> AsyncIterator[Any]:
        async for data in requests:
            yield await one(data, context)

    async def unary(data: bytes, context: Any) -> Any:
        return await handler.unary_unary(await one(data, context), context)

    async def stream(data: bytes, context: Any) -> None:  # Health.Watch writes to the context
        await handler.unary_stream(await one(data, context), context)

    async def discuss(requests: Any, context: Any) -> AsyncIterator[Any]:
        async for reply in handler.stream_stream(each(requests, context), context):
            yield reply

    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(unary, response_serializer=serialize)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(stream, response_serializer=serialize)
    return grpc.stream_stream_rpc_method_handler(discuss, response_serializer=serialize)
