"""The latency of warm reads, one by one, in turn with the same services on grpcio's server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from statistics import median

import pytest
import uvloop

from tests.benchmarks.budget import BATCHES, CACHED, P50_SHARE
from tests.benchmarks.conftest import Report
from tests.benchmarks.rounds import in_turn, reads
from tests.benchmarks.system import System
from tests.benchmarks.test_reads import TITLE

TURNS = 9
CALLS = 300


@pytest.mark.parametrize("method", [method for method in CACHED if method not in BATCHES])
def test_warm_read_takes_at_most_half_of_its_time_on_grpcio(system: System, report: Report, method: str) -> None:
    p50 = uvloop.run(measure(system, method))
    share = p50["ours"] / p50["grpcio"]
    report.add(TITLE, method, p50_us=f"{p50['ours']:.0f}", on_grpcio=f"{p50['grpcio']:.0f}", share=f"{share:.2f}")
    assert share <= P50_SHARE


async def measure(system: System, method: str) -> dict[str, float]:
    """Return the p50 of each variant, in us."""
    async with AsyncExitStack() as stack:
        rounds = {
            name: (await reads(stack, variant, system.cases[method])).warm for name, variant in system.variants.items()
        }
        costs = await in_turn(rounds, TURNS, CALLS, 1)
    return {name: median(cost.result.percentile_us(0.5) for cost in of_one) for name, of_one in costs.items()}
