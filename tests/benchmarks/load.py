"""Calls from this process, and the CPU time that they cost a server's process."""

import asyncio
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.http2 import Caller, Headers

BEHIND_SECONDS = 0.03  # longer than anything waits to be stored


class Round(NamedTuple):
    """What one round of calls cost: CPU of the server a call, in us, and the `x-cache` of its last reply."""

    cpu_us: float
    source: str


class Target:
    """A server process."""

    def __init__(self, port: int, pid: int) -> None:
        """Remember where to call, and whose CPU time to read."""
        self.port = port
        self.tasks = Path(f"/proc/{pid}/task")

    def _cpu_ns(self) -> int:
        """Return the CPU time of all threads: to the ns, where the process's own figure counts in ticks of 10 ms."""
        return sum(int((task / "schedstat").read_text().split()[0]) for task in self.tasks.iterdir())

    async def round(
        self, method: str, requests: Sequence[bytes], calls: int, in_flight: int, metadata: Headers = ()
    ) -> Round:
        """Send `calls` requests, in turn out of `requests`, `in_flight` at a time; each must be answered OK.

        What goes on behind the replies counts, too.
        """
        caller = await Caller.connect(self.port, method, metadata)
        await caller.run(requests[:1], 1)
        before = self._cpu_ns()
        async with asyncio.timeout(60):
            await caller.run(islice(cycle(requests), calls), in_flight)
            await asyncio.sleep(BEHIND_SECONDS)
        cpu_us = (self._cpu_ns() - before) / calls / 1000
        caller.transport.close()
        return Round(cpu_us, caller.trailers.get("x-cache", ""))

    async def reply(self, method: str, request: bytes) -> bytes:
        """Return one reply's bytes."""
        caller = await Caller.connect(self.port, method)
        await caller.run([request], 1)
        caller.transport.close()
        return caller.reply
