"""Many calls on one process, and its memory: `python -m tests.benchmarks.soak --help`."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import psutil
import typer
import uvloop
from rich.console import Console
from rich.progress import Progress

from tests.benchmarks.client import Call, Client, calls_of
from tests.benchmarks.system import running

FIRST_CALLS = 100_000  # after these the memory should be stable
STEP_CALLS = 100_000
METHODS = ("GetBookingByCode", "GetSalon", "ListBookings", "BatchGetSalons")
MIB = 2**20


@asynccontextmanager
async def booking(folder: Path) -> AsyncIterator[tuple[int, int, Sequence[Call]]]:
    """Run the booking service; yield its port, its process and calls of its cached reads."""
    with running(folder, {"ours": {}}) as system:
        variant = system.variants["ours"]
        server = variant.services["booking"]
        calls = [
            call for method in METHODS for call in calls_of(system.cases[method].path, system.cases[method].requests)
        ]
        yield server.port, server.pid, calls


async def soak(total: int, in_flight: int, connections: int, progress: Progress) -> tuple[int, int, int]:
    """Make `total` calls; return the memory after the first ones and at the end, in bytes, and the failed calls."""
    with tempfile.TemporaryDirectory() as folder:
        async with booking(Path(folder)) as (port, pid, calls):
            memory, task, failed, first = psutil.Process(pid), progress.add_task("calls", total=total), 0, 0
            made = cycle(calls)
            for done in range(0, total, STEP_CALLS):
                with closing(await Client.connect([port], connections)) as client:
                    result = await client.run(islice(made, min(STEP_CALLS, total - done)), in_flight, check=False)
                failed += result.errors
                if done < FIRST_CALLS:
                    first = memory.memory_info().rss
                progress.update(task, completed=done + STEP_CALLS)
            return first, memory.memory_info().rss, failed


def main(
    calls: Annotated[int, typer.Option(min=1, max=100_000_000, help="Total number of calls.")] = 10_000_000,
    in_flight: Annotated[int, typer.Option(min=1, max=1000, help="Concurrent calls.")] = 128,
    connections: Annotated[int, typer.Option(min=1, max=100, help="Connections for the calls.")] = 4,
) -> None:
    """Call one booking process on this machine, and compare its memory at the end with that after 100,000 calls.

    The connections are replaced every 100,000 calls. Exits with 1 if a call failed or the memory grew by over 10 %.
    """
    with Progress(console=Console(stderr=True)) as progress:
        first, last, failed = uvloop.run(soak(calls, in_flight, connections, progress))
    grown = last / first - 1
    print(f"{calls:,} calls, {failed} failed; memory {first / MIB:.1f} MB, then {last / MIB:.1f} MB ({grown:+.1%})")
    raise typer.Exit(int(failed > 0 or grown > 0.1))


if __name__ == "__main__":
    typer.run(main)
