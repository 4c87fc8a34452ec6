"""The server under attack: `python -m tests.http2_abuse.server '{"max_connections": 100}' [CERT KEY]`.

It prints its port. `/abuse/State` answers with the current and past resource use of the process, as JSON.
"""

import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import uvloop

from libs.http2 import Limits, Server, Tls

SAMPLE_SECONDS = 0.001
LONG_SECONDS = 0.05


class Errors(logging.Handler):
    """Keeps records logged at ERROR."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []
        self._formatter = logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, with its traceback."""
        self.texts.append(self._formatter.format(record))


class Holds:
    """How long the event loop was blocked, in wall-clock time and in CPU time, which other processes do not affect."""

    def __init__(self) -> None:
        self.clear()
        self._timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Stop."""
        if self._timer is not None:
            self._timer.cancel()

    def clear(self) -> None:
        """Reset."""
        self.longest = self.longest_cpu = 0.0
        self.long = 0
        self._last, self._last_cpu = time.perf_counter(), time.thread_time()

    def sample(self) -> None:
        """Read the clocks, and schedule the next sample."""
        now, cpu = time.perf_counter(), time.thread_time()
        held, self._last = now - self._last - SAMPLE_SECONDS, now
        held_cpu, self._last_cpu = cpu - self._last_cpu, cpu
        self.longest, self.longest_cpu = max(self.longest, held), max(self.longest_cpu, held_cpu)
        self.long += held_cpu > LONG_SECONDS
        self._timer = asyncio.get_running_loop().call_later(SAMPLE_SECONDS, self.sample)


class Dispatcher:
    """The methods, which take and return bytes."""

    def __init__(self, server: Server, errors: Errors, holds: Holds) -> None:
        """Remember what `state` reports."""
        self.server = server
        self.errors = errors
        self.holds = holds

    async def echo(self, request: bytes, context: Any) -> bytes:
        """Answer a message with itself."""
        return request

    async def large(self, request: bytes, context: Any) -> bytes:
        """Answer with `request` bytes."""
        return b"x" * int(request)

    async def sink(self, request: bytes, context: Any) -> bytes:
        """Answer with the size of a message."""
        return b"%d" % len(request)

    async def slow(self, request: bytes, context: Any) -> bytes:
        """Answer after `request` milliseconds."""
        await asyncio.sleep(int(request) / 1000)
        return request

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answer with messages; `100 16384`: 100 of 16384 bytes."""
        count, size = map(int, request.split())
        for _ in range(count):
            yield b"x" * size

    async def talk(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each message with itself, and take 10 ms for it."""
        async for request in requests:
            await asyncio.sleep(0.01)
            yield request

    async def state(self, request: bytes, context: Any) -> bytes:
        """Return the resource use of the process; `clear` resets the longest blocking times first."""
        if request == b"clear":
            self.holds.clear()
            self.errors.texts.clear()
        if request == b"collect":
            gc.collect()
        return json.dumps(
            {
                **asdict(self.server.counters),
                "deadlines": len(self.server.deadlines),
                "tasks": len(asyncio.all_tasks()),
                "longest_ms": self.holds.longest * 1000,
                "longest_cpu_ms": self.holds.longest_cpu * 1000,
                "long_holds": self.holds.long,
                "errors": self.errors.texts,
            }
        ).encode()


async def serve(limits: Limits, tls: Tls | None) -> None:
    """Serve until canceled."""
    errors, holds = Errors(), Holds()
    logging.getLogger().addHandler(errors)
    server = Server(limits=limits, tls=tls)
    methods = Dispatcher(server, errors, holds)
    server.add_registered_method_handlers(
        "abuse",
        {
            "Echo": grpc.unary_unary_rpc_method_handler(methods.echo),
            "Large": grpc.unary_unary_rpc_method_handler(methods.large),
            "Sink": grpc.unary_unary_rpc_method_handler(methods.sink),
            "Slow": grpc.unary_unary_rpc_method_handler(methods.slow),
            "Stream": grpc.unary_stream_rpc_method_handler(methods.stream),
            "Talk": grpc.stream_stream_rpc_method_handler(methods.talk),
            "State": grpc.unary_unary_rpc_method_handler(methods.state),
        },
    )
    port = server.listen("127.0.0.1:0")
    await server.start()
    gc.collect()
    gc.freeze()
    print(port, flush=True)
    holds.sample()
    await server.wait_for_termination()


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[2:]]
    uvloop.run(serve(Limits(**json.loads(sys.argv[1])), Tls(*files) if files else None))
