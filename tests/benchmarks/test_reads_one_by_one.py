"""The latency of warm reads, one by one, in turn with the same services on grpcio's server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import pytest
import uvloop

from tests.benchmarks.budget import BATCHES, CACHED, P50_SHARE, judge
from tests.benchmarks.conftest import Report
from tests.benchmarks.load import Cost
from tests.benchmarks.rounds import in_turn, medians, multiples, p50, reads
from tests.benchmarks.system import System
from tests.benchmarks.test_reads import TITLE

TURNS = 25
CALLS = 100


@pytest.mark.parametrize("method", [method for method in CACHED if method not in BATCHES])
def test_a_warm_read_takes_at_most_half_of_its_time_on_grpcio(
    system: System, report: Report, benchmark: Any, method: str
) -> None:
    costs = benchmark.pedantic(lambda: uvloop.run(measure(system, method)), rounds=1)
    us, share = medians(costs, p50), round(median(multiples(costs, "grpcio", p50)["ours"]), 2)
    benchmark.extra_info.update(p50_us=us["ours"], share=share)
    report.add(TITLE, method, p50_us=f"{us['ours']:.0f}", on_grpcio=f"{us['grpcio']:.0f}", share=f"{share:.2f}")
    judge("p50", share, P50_SHARE)


async def measure(system: System, method: str) -> dict[str, list[Cost]]:
    """Return the costs of the rounds of each variant."""
    async with AsyncExitStack() as stack:
        rounds = {
            name: (await reads(stack, variant, system.cases[method])).warm for name, variant in system.variants.items()
        }
        return await in_turn(rounds, TURNS, CALLS, 1)
