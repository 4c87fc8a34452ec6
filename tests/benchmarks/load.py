"""Load a server process and read its CPU time. `python -m tests.benchmarks.load --help` does it by hand."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.client import Call, Client, Result

BEHIND_SECONDS = 0.03  # longer than anything waits to be stored


class Target(NamedTuple):
    """A server process."""

    port: int
    pid: int

    def cpu_ns(self) -> int:
        """Return the CPU time of all threads: to the ns, where the process's own figure counts in ticks of 10 ms."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


class Cost(NamedTuple):
    """The server CPU per call of a round, in us, and the round's result."""

    cpu_us: float
    result: Result


class Load:
    """Connections to processes that are measured together; `Call.server` is the index of one."""

    def __init__(self, client: Client, targets: Sequence[Target]) -> None:
        """Take the client that is connected to them."""
        self.client, self.targets = client, targets

    async def round(self, calls: Iterable[Call], in_flight: int, **options: Any) -> Cost:
        """Send the calls; `options` are those of Client.run, which also says what is raised.

        The work that goes on behind the replies counts, too.
        """
        before = self._cpu_ns()
        result = await self.client.run(calls, in_flight, **options)
        await asyncio.sleep(BEHIND_SECONDS)
        return Cost((self._cpu_ns() - before) / result.calls / 1000, result)

    async def reply(self, call: Call) -> bytes:
        """Return the message of one reply. Raises: CallsFailed."""
        return (await self.client.run([call], keep_replies=True)).replies[0]

    def _cpu_ns(self) -> int:
        return sum(target.cpu_ns() for target in self.targets)


@asynccontextmanager
async def connected(*targets: Target, connections: int = 1) -> AsyncIterator[Load]:
    """Connect to processes on this machine until the block ends."""
    client = await Client.connect([target.port for target in targets], connections)
    try:
        yield Load(client, targets)
    finally:
        client.close()
