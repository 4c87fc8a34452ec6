"""Measures the cases: both ways in turn, at one caller and at 32, and the whole RPC beside them."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, TypeVar

import grpc

from libs.cache import MAX_AGE
from tools.report.cases import Ask, Case
from tools.report.figures import Measured, times
from tools.report.seed_figures import LINES
from tools.report.system import System, without
from tools.report.ways import After, Before

T = TypeVar("T")
CALLERS = (1, 32)
NO_CACHE = (("cache-control", "no-cache"),)
CACHED = ("hit", "near")
MOST_FILLS = 5
OFTEN = 8  # cached reads for one that is not: together they still take the least time


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds of up to `calls` calls or `seconds` s each; `operations` of the workload."""

    rounds: int
    calls: int
    seconds: float
    operations: int


FULL = Effort(rounds=6, calls=128, seconds=0.6, operations=20_000)
QUICK = Effort(rounds=1, calls=64, seconds=0.06, operations=600)


async def timed(
    call: Callable[[T], Awaitable[object]], asks: Iterable[T], callers: int, seconds: float = 1e9
) -> list[float]:
    """Have `callers` callers share the calls until these or `seconds` are over; return what each call took, in s."""
    waiting, taken = iter(asks), list[float]()
    end = time.perf_counter() + seconds

    async def caller() -> None:
        for ask in waiting:
            started = time.perf_counter()
            await call(ask)
            taken.append(time.perf_counter() - started)
            if started > end:
                return

    await asyncio.gather(*(caller() for _ in range(callers)))
    return taken


class Rpcs:
    """The services' RPCs, in bytes."""

    def __init__(self, system: System, *, cached: bool) -> None:
        """Open a channel to each service; without the cache each call asks past it."""
        self.channels = {name: grpc.aio.insecure_channel(f"127.0.0.1:{port}") for name, port in system.ports.items()}
        self._cached = cached

    def of(self, case: Case, *, cached: bool = True) -> Callable[[Ask], Awaitable[bytes]]:
        """Return a case's RPC."""
        call: Any = self.channels[case.service].unary_unary(case.path)
        metadata = None if cached and self._cached else NO_CACHE

        async def ask(ask: Ask) -> bytes:
            reply: bytes = await call(ask.request.SerializeToString(), metadata=metadata)
            return reply

        return ask

    async def close(self) -> None:
        """Close the channels."""
        for channel in self.channels.values():
            await channel.close()


class CaseRounds:
    """The rounds of one case, at one number of callers."""

    def __init__(self, case: Case, callers: int, effort: Effort) -> None:
        """Have no times yet."""
        self._case = case
        self._callers = callers
        self._effort = effort
        self._taken: dict[str, list[float]] = {name: [] for name in ("before", "first", "after", "rpc_first", "rpc")}
        self._shows_first = any(line.first for line in LINES if line.case == case.key)
        self._sources: Counter[str] = Counter()

    async def warm_up(self, before: Before, after: After) -> None:
        """Open the connections and prepare the statements."""
        asks = self._case.asks[: self._effort.calls]
        await after.forget()
        for way in (before, after):
            await timed(lambda ask, way=way: way.read(self._case, ask), asks, self._callers, self._effort.seconds)  # type: ignore[misc]

    async def run(self, before: Before, after: After, rpcs: Rpcs) -> None:
        """Do one round of each way; a first read is asked once, then all is in the cache."""
        case, calls = self._case, self._effort.calls if self._callers > 1 else self._effort.calls // 2
        asks, rpc = case.asks[:calls], rpcs.of(case)
        again, often = (list(islice(cycle(asks), count)) for count in (calls, calls * OFTEN))

        async def read(ask: Ask) -> None:
            reply = await after.read(case, ask)
            self._sources[reply.source] += 1

        await self._add("before", lambda ask: before.read(case, ask), again)
        if self._shows_first:
            await after.forget()
            await self._add("rpc_first", rpc, asks)
        await after.forget()
        await self._add("first", lambda ask: after.read(case, ask), asks)
        await self._fill(after, asks)
        await self._add("after", read, often)
        await self._add("rpc", rpc, again)

    async def _fill(self, after: After, asks: Sequence[Ask]) -> None:
        """Read until the cache has it all: a fill may have been refused. Without the cache: once."""
        for _ in range(MOST_FILLS):
            await after.settle()
            sources = set[str]()

            async def read(ask: Ask, sources: set[str] = sources) -> None:
                sources.add((await after.read(self._case, ask)).source)

            await timed(read, asks, self._callers)
            if "miss" not in sources:
                return

    async def _add(self, name: str, call: Callable[[Ask], Awaitable[object]], asks: Sequence[Ask]) -> None:
        self._taken[name] += await timed(call, asks, self._callers, self._effort.seconds)

    def measured(self) -> Measured:
        """Return the figures of all rounds together."""
        taken = self._taken
        before, first, after, rpc = (times(taken[name]) for name in ("before", "first", "after", "rpc"))
        rpc_first = times(taken["rpc_first"]) if self._shows_first else None
        hits, near = (
            round(100 * sum(self._sources[source] for source in sources) / after.calls, 2)
            for sources in (CACHED, CACHED[1:])
        )
        return Measured(self._callers, before, first, after, rpc_first, rpc, hits, near)


async def measure_case(
    system: System, case: Case, before: Before, after: After, rpcs: Rpcs, effort: Effort, *, cached: bool
) -> list[Measured]:
    """Measure a case; "before" lacks its index meanwhile. Without the cache every read asks past it."""
    at = [CaseRounds(case, callers, effort) for callers in CALLERS]
    MAX_AGE.set(None if cached else 0)
    with without(system.copy_url, case.index):
        await at[-1].warm_up(before, after)
        for _ in range(effort.rounds):
            for rounds in at:
                await rounds.run(before, after, rpcs)
    return [rounds.measured() for rounds in at]
