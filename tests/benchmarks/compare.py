"""Compare two variants of the services in turn, A B A B: `python -m tests.benchmarks.compare --help`.

The variants differ by environment or by source tree. Each has its own database and Valkey with the same data, and both
get the same requests. The salons are open around the clock and their resources exist, so an older tree, whose bookings
keep no rules, takes them too.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, NamedTuple

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks.load import Cost, connected
from tests.benchmarks.rounds import (
    Round,
    bodies,
    bookings,
    cpu,
    in_turn,
    medians,
    mixed,
    multiples,
    p50,
    reads,
    webhooks,
)
from tests.benchmarks.system import System, Variant, running

READS = ("GetBookingByCode", "GetConversation", "ListMessages", "GetSalonStats")
ROWS = (
    *(f"warm {method}" for method in READS),
    *(f"cold {method}" for method in READS),
    *("near GetSalon", "search SearchAvailability", "write CreateBooking", "write IngestWebhook", "bodies", "mixed"),
)
# Per round.
CALLS = {
    32: {"mixed": 2000, "write": 320, "bodies": 64, "search": 160},
    1: {"mixed": 500, "write": 100, "bodies": 20, "search": 50},
}
CALLS_OF_READS = {32: 640, 1: 200}


class Row(NamedTuple):
    """Medians in us, and the quartiles of B/A of the CPU over the turns; the middle one is the ratio."""

    name: str
    in_flight: int
    a_cpu_us: float
    b_cpu_us: float
    cpu_ratios: tuple[float, float, float]
    a_p50_us: float
    b_p50_us: float
    p50_ratio: float


async def rounds_of(stack: AsyncExitStack, system: System, variant: Variant, name: str) -> Round:
    """Return the rounds of a row on one variant, after enough calls to warm caches and statements."""
    kind, _, method = name.partition(" ")
    if kind in ("warm", "cold", "near"):
        read = await reads(stack, variant, system.cases[method])
        return {"warm": read.warm, "cold": read.cold, "near": read.near}[kind]
    if kind == "search":
        return (await reads(stack, variant, system.cases[method], cached=False)).off
    load = await stack.enter_async_context(connected(*variant.targets))
    writes = {"write CreateBooking": bookings, "write IngestWebhook": webhooks, "bodies": bodies}
    run = {"mixed": mixed, **writes}[name](variant, load)
    await run(0, 3 * CALLS[32][kind], 32)
    return run


async def measure(system: System, name: str, turns: int) -> list[Row]:
    """Return a row with 32 in flight, and one by one."""
    rows = []
    async with AsyncExitStack() as stack:
        rounds = {key: await rounds_of(stack, system, variant, name) for key, variant in system.variants.items()}
        for in_flight, calls in CALLS.items():
            count = calls.get(name.partition(" ")[0], CALLS_OF_READS[in_flight])
            rows.append(_row(name, in_flight, await in_turn(rounds, turns, count, in_flight)))
    return rows


def _row(name: str, in_flight: int, costs: Mapping[str, list[Cost]]) -> Row:
    us, latencies = medians(costs, cpu), medians(costs, p50)
    first, middle, third = quantiles(multiples(costs, "a", cpu)["b"], n=4)
    p50_ratio = median(multiples(costs, "a", p50)["b"])
    return Row(name, in_flight, us["a"], us["b"], (first, middle, third), latencies["a"], latencies["b"], p50_ratio)


def environment(assignments: str, tree: Path | None) -> dict[str, str]:
    """Parse `A=x B=y`, and add the variables that make Python import from a source tree."""
    variables = dict(part.split("=", 1) for part in shlex.split(assignments))
    if tree is not None:
        if not (tree / "services").is_dir():
            raise typer.BadParameter(f"{tree} is no source tree of Parlor")
        tree = tree.resolve()
        variables |= {"PYTHONPATH": f"{tree}:{tree / 'protos'}", "PYTHONSAFEPATH": "1"}
    return variables


Variables = Annotated[str, typer.Option(help="Environment of the variant, such as 'REDIS_REFILL=9 WORKERS=2'.")]
Tree = Annotated[
    Path | None,
    typer.Option(help="Source tree of the variant. It runs on the schema of this one.", show_default="this one"),
]


def main(
    a: Variables = "",
    b: Variables = "",
    a_tree: Tree = None,
    b_tree: Tree = None,
    turns: Annotated[int, typer.Option(min=3, max=200, help="Rounds of each variant.")] = 21,
    own_schemas: Annotated[
        bool, typer.Option("--own-schemas", help="A tree runs on its own schema. Only writes can be compared then.")
    ] = False,
    only: Annotated[
        str, typer.Option(help=f"Regular expression of the rows to measure. Rows: {', '.join(ROWS)}.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each row.")] = False,
) -> None:
    """Measure the service CPU and the p50 of two variants, in turn, 32 in flight and one by one.

    A ratio is the median over the turns of B/A; below 1, B is cheaper. The quartiles show its precision.
    """
    names = [name for name in ROWS if re.search(only, name)]
    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        tempfile.TemporaryDirectory(prefix="parlor-compare-", ignore_cleanup_errors=True) as folder,
    ):
        task = progress.add_task("starting", total=len(names))
        Path(folder).chmod(0o711)  # PostgreSQL may have to run as nobody
        with running(
            Path(folder), {"a": environment(a, a_tree), "b": environment(b, b_tree)}, own_schemas=own_schemas
        ) as system:
            for name in names:
                progress.update(task, description=name)
                rows += uvloop.run(measure(system, name, turns))
                progress.advance(task)
    show(rows, as_json)


def show(rows: list[Row], as_json: bool) -> None:
    """Print the rows."""
    if as_json:
        print("\n".join(json.dumps(row._asdict()) for row in rows))
        return
    print(
        "| | in flight | A, us CPU | B | B/A | quartiles | A, us p50 | B | B/A |\n|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        first, middle, third = row.cpu_ratios
        cells = (f"{row.a_cpu_us:.0f}", f"{row.b_cpu_us:.0f}", f"{middle:.2f}", f"{first:.2f} - {third:.2f}")
        latencies = (f"{row.a_p50_us:.0f}", f"{row.b_p50_us:.0f}", f"{row.p50_ratio:.2f}")
        print(f"| {' | '.join((row.name, str(row.in_flight), *cells, *latencies))} |")


if __name__ == "__main__":
    typer.run(main)
