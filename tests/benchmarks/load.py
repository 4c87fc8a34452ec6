"""Calls from this process, and the CPU time that they cost a server's process."""

import asyncio
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import grpc


class Round(NamedTuple):
    """What one round of calls cost: CPU of the server a call, in us, and the `x-cache` of its last reply."""

    cpu_us: float
    source: str


class Target:
    """A server process and a channel to it."""

    def __init__(self, port: int, pid: int) -> None:
        """Remember where to call, and whose CPU time to read."""
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.tasks = Path(f"/proc/{pid}/task")

    def _cpu_ns(self) -> int:
        """Return the CPU time of all threads: to the ns, where the process's own figure counts in ticks of 10 ms."""
        return sum(int((task / "schedstat").read_text().split()[0]) for task in self.tasks.iterdir())

    async def round(
        self, method: str, requests: Sequence[bytes], calls: int, in_flight: int, metadata: Any = None
    ) -> Round:
        """Send `calls` requests, in turn out of `requests`, `in_flight` at a time."""
        call: Any = self.channel.unary_unary(method)
        waiting = islice(cycle(requests), calls)
        source = ""

        async def caller() -> None:
            nonlocal source
            for request in waiting:
                sent = call(request, metadata=metadata)
                await sent
            source = str(dict(await sent.trailing_metadata() or ()).get("x-cache", ""))

        before = self._cpu_ns()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return Round((self._cpu_ns() - before) / calls / 1000, source)

    async def reply(self, method: str, request: bytes) -> bytes:
        """Return one reply's bytes."""
        call: Any = self.channel.unary_unary(method)
        answer: bytes = await call(request)
        return answer
