"""A well-behaved client: `python -m tests.http2_abuse.neighbor PORT PID [CA]`.

It makes a light call every 5 ms on one connection. Each line that it reads ends a round and begins another: it prints
the times of the calls of the ended round, in ms, and the statuses of failed calls, as JSON. Time that the server's
process or this one spent waiting for a CPU is subtracted, because other processes cause it.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

PAUSE_SECONDS = 0.005


def waited_ns(pid: int) -> int:
    """Return how long a process has waited for a CPU, in ns."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])


async def run(port: int, pid: int, authority: bytes | None) -> None:
    """Call until the input ends."""
    target = f"localhost:{port}"
    if authority is None:
        channel = grpc.aio.insecure_channel(target)
    else:
        channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(authority))
    echo: Any = channel.unary_unary("/abuse/Echo")
    await repeat(pid, lambda: echo(b"x" * 100, timeout=10, wait_for_ready=False))
    await channel.close()


async def repeat(pid: int, call: Callable[[], Awaitable[Any]]) -> None:
    """Repeat a call to a server's process until the input ends."""
    times: list[float] = []
    failures: list[str] = []

    async def call_once() -> None:
        started, waited = time.perf_counter(), waited_ns(pid) + waited_ns(os.getpid())
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            failures.append(f"{error.code().name}: {error.details()}")
        waited = waited_ns(pid) + waited_ns(os.getpid()) - waited
        times.append(max(0, (time.perf_counter() - started) * 1000 - waited / 1e6))

    async def call_always() -> None:
        while True:
            await call_once()
            await asyncio.sleep(PAUSE_SECONDS)

    for _ in range(20):
        await call_once()
    calling = asyncio.create_task(call_always())
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps({"times_ms": times, "failures": failures}), flush=True)
        times.clear()
        failures.clear()
    calling.cancel()


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_bytes() if len(sys.argv) > 3 else None))
