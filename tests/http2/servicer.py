"""A servicer with every kind of method, over bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

SERVICE = "test.v1.Test"
DETAILS = b"\x08\x03\x12\x04oops\xff"  # not a valid google.rpc.Status: transports do not check it

Handler = Callable[[Any, Any], Any]


class Servicer:
    """Records the state of calls: `context` is that of the last call, `ended` tells how a slow handler ended."""

    def __init__(self) -> None:
        self.context: Any = None
        self.begun = asyncio.Event()
        self.proceed = asyncio.Event()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.callbacks: asyncio.Queue[Any] = asyncio.Queue()
        self.attempts = 0
        self.entered: asyncio.Queue[None] = asyncio.Queue()
        self.written = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the generic handlers."""
        kinds: dict[str, tuple[Any, Handler]] = {
            "Echo": (grpc.unary_unary_rpc_method_handler, self.echo),
            "Report": (grpc.unary_unary_rpc_method_handler, self.report),
            "Slow": (grpc.unary_unary_rpc_method_handler, self.slow),
            "Flaky": (grpc.unary_unary_rpc_method_handler, self.flaky),
            "Run": (grpc.unary_unary_rpc_method_handler, self.run),
            "Abort": (grpc.unary_unary_rpc_method_handler, self.abort),
            "Stream": (grpc.unary_stream_rpc_method_handler, self.stream),
            "Write": (grpc.unary_stream_rpc_method_handler, self.write),
            "RunStream": (grpc.unary_stream_rpc_method_handler, self.run),
            "Collect": (grpc.stream_unary_rpc_method_handler, self.collect),
            "Iterate": (grpc.unary_stream_rpc_method_handler, self.run_iterate),
            "Discuss": (grpc.stream_stream_rpc_method_handler, self.discuss),
            "Chat": (grpc.stream_stream_rpc_method_handler, self.chat),
            "Talk": (grpc.stream_stream_rpc_method_handler, self.talk),
        }
        handlers = {name: kind(_noted(self, method)) for name, (kind, method) in kinds.items()}
        parsed = grpc.unary_unary_rpc_method_handler(self.echo, StringValue.FromString, StringValue.SerializeToString)
        return grpc.method_handlers_generic_handler(SERVICE, {**handlers, "Parse": parsed})

    # The behavior of Run and RunStream, Iterate, and Discuss, set by tests.
    behavior: Callable[[bytes, Any], Awaitable[Any]]
    iterate: Callable[[bytes, Any], AsyncIterator[bytes]]
    talking: Callable[[Any, Any], Awaitable[None]]

    async def echo(self, request: bytes, context: Any) -> bytes:
        """Answer a message with itself."""
        return request

    async def run(self, request: bytes, context: Any) -> Any:
        """Run the `behavior` set by the test."""
        return await self.behavior(request, context)

    async def run_iterate(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Yield the messages of the test's `iterate`."""
        async with aclosing(self.iterate(request, context)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                yield reply

    async def discuss(self, requests: Any, context: Any) -> None:
        """Run the `talking` set by the test."""
        await self.talking(requests, context)

    async def report(self, request: bytes, context: Any) -> bytes:
        """Answer with the contents of the context."""
        metadata = [[name, list(value) if isinstance(value, bytes) else value] for name, value in _own(context)]
        return json.dumps({"metadata": metadata, "has_deadline": context.time_remaining() is not None}).encode()

    async def slow(self, request: bytes, context: Any) -> bytes:
        """Answer once the test sets `proceed`."""
        context.add_done_callback(self.callbacks.put_nowait)
        self.begun.set()
        self.entered.put_nowait(None)
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.ended.put_nowait("canceled")
            raise
        self.ended.put_nowait("returned")
        return request

    async def flaky(self, request: bytes, context: Any) -> bytes:
        """Be UNAVAILABLE as often as the request says, with a pushback in ms if it has one."""
        self.attempts += 1
        times, _, pushback = request.decode().partition(" ")
        if self.attempts <= int(times):
            trailing = (("grpc-retry-pushback-ms", pushback),) if pushback else ()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now", trailing)
        return request

    async def abort(self, request: bytes, context: Any) -> bytes:
        """Abort with the code in the request, with details."""
        trailing = (("reason", "test"), ("reason", "again"), ("grpc-status-details-bin", DETAILS))
        await context.abort(grpc.StatusCode[request.decode() or "ABORTED"], "100 % wrong: \u00fc\n", trailing)
        raise AssertionError

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Yield `count` messages of `size` bytes."""
        count, _, size = request.decode().partition(" ")
        for number in range(int(count or 0)):
            yield bytes([number % 256]) * int(size or 1)
            self.written += 1

    async def write(self, request: bytes, context: Any) -> None:
        """Write as `stream` does."""
        async for message in self.stream(request, context):
            await context.write(message)

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Answer with all messages in order, and their number."""
        messages = [message async for message in requests]
        return b"%d " % len(messages) + b"".join(messages)

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each message with itself."""
        async for message in requests:
            yield message

    async def talk(self, requests: Any, context: Any) -> None:
        """Answer each message with itself, with read() and write() of the context."""
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)


def _noted(servicer: Servicer, method: Handler) -> Handler:
    """Return the method, wrapped so that its context is recorded."""
    # grpcio distinguishes coroutines and async generators, so there is one of each.
    if asyncio.iscoroutinefunction(method):

        async def call(request: Any, context: Any) -> Any:
            servicer.context = context
            return await method(request, context)

        return call

    async def iterate(request: Any, context: Any) -> AsyncIterator[Any]:
        servicer.context = context
        async with aclosing(method(request, context)) as replies:
            async for reply in replies:
                yield reply

    return iterate


def _own(context: Any) -> list[tuple[str, str | bytes]]:
    return [(name, value) for name, value in context.invocation_metadata() if name != "user-agent"]
