"""The CPU of each read RPC, 32 in flight, in turn with the echo of its reply: medians of many rounds."""

from __future__ import annotations

from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import pytest
import uvloop

from tests.benchmarks.budget import BATCHES, CACHED, MISSED, NEAR, NOT_CACHED, READ_ECHOES, judge
from tests.benchmarks.conftest import Report
from tests.benchmarks.load import Cost
from tests.benchmarks.rounds import Round, cpu, echo_of, in_turn, medians, multiples, reads
from tests.benchmarks.system import System

TURNS = 15
CALLS = 640
CALLS_OF_SLOW = 128
SLOW = (*BATCHES, "SearchMessages", "SearchAvailability")
IN_FLIGHT = 32
TITLE = "Reads, 32 in flight: server CPU per RPC in echoes; one by one, warm: p50."


@pytest.mark.parametrize("method", [*CACHED, *NOT_CACHED])
def test_a_read_costs_at_most_its_budget(system: System, report: Report, benchmark: Any, method: str) -> None:
    costs = benchmark.pedantic(lambda: uvloop.run(measure(system, method)), rounds=1)
    echoes = {kind: round(median(rounds), 3) for kind, rounds in multiples(costs, "echo", cpu).items()}
    cells = {kind: f"{echoes[kind]:.2f}" if kind in echoes else "-" for kind in ("near", "warm", "cold", "off")}
    benchmark.extra_info.update(echoes)
    report.add(TITLE, method, echo_us=f"{medians(costs, cpu)['echo']:.0f}", **cells)
    goals = {kind: most[method] for kind, most in READ_ECHOES.items() if kind in echoes and method in most}
    for kind in sorted(goals, key=lambda kind: f"{kind} {method}" in MISSED):  # an expected failure ends the test
        judge(f"{kind} {method}", echoes[kind], goals[kind])


async def measure(system: System, method: str) -> dict[str, list[Cost]]:
    """Return the costs of the rounds of the echo and of each kind of read."""
    ours, case, cached = system.variants["ours"], system.cases[method], method in CACHED
    async with AsyncExitStack() as stack:
        read = await reads(stack, ours, case, cached=cached)
        rounds: dict[str, Round] = {"echo": await echo_of(stack, system, ours, case)}
        if cached:
            rounds |= {"cold": read.cold, "warm": read.warm}
        if method in NEAR:
            rounds["near"] = read.near
        calls = CALLS_OF_SLOW if method in SLOW else CALLS
        return await in_turn(rounds | {"off": read.off}, TURNS, calls, IN_FLIGHT)
