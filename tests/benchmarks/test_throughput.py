"""Warm calls per second of one process, in turn with the echo of a booking; medians."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import cycle
from statistics import median
from typing import Any

import pytest
import uvloop

from tests.benchmarks.budget import RATE_RATIOS, judge
from tests.benchmarks.cases import Case, long_lists
from tests.benchmarks.client import Result, calls_of
from tests.benchmarks.conftest import Report
from tests.benchmarks.load import connected
from tests.benchmarks.rounds import ENOUGH
from tests.benchmarks.system import System, target

TURNS = 15
SECONDS = 0.3
IN_FLIGHT = 32
TITLE = "Throughput of one process, warm, 32 in flight on one connection: calls/s."
CASES: dict[str, Callable[[System], Case]] = {
    "booking by code": lambda system: system.cases["GetBookingByCode"],
    "conversation + 10 messages": lambda system: conversations(system.cases["GetConversation"]),
    "messages, 100": lambda system: long_lists(system.variants["ours"].database_url),
}


def conversations(case: Case) -> Case:
    """Return the case with only the requests for ten messages."""
    return case._replace(requests=case.requests[: len(case.requests) // 4])


@pytest.mark.parametrize("name", CASES)
def test_warm_throughput_is_a_multiple_of_the_echo(system: System, report: Report, benchmark: Any, name: str) -> None:
    results = benchmark.pedantic(lambda: uvloop.run(measure(system, CASES[name](system))), rounds=1)
    of_echo, of_calls = (median(result.rate for result in results[kind]) for kind in ("echo", "calls"))
    pairs = zip(results["calls"], results["echo"], strict=True)
    ratio = round(median(calls.rate / echo.rate for calls, echo in pairs), 2)
    latencies = {
        f"p{share}_us": f"{median(result.percentile_us(share / 100) for result in results['calls']):.0f}"
        for share in (50, 99)
    }
    benchmark.extra_info.update(calls_per_second=of_calls, ratio=ratio)
    report.add(TITLE, name, echo=f"{of_echo:,.0f}", calls=f"{of_calls:,.0f}", ratio=f"{ratio:.2f}", **latencies)
    judge(name, ratio, RATE_RATIOS[name], more_is_better=True)


async def measure(system: System, case: Case) -> dict[str, list[Result]]:
    """Return the results of the rounds of the echo and of the case."""
    ours, booking = system.variants["ours"], system.cases["GetBookingByCode"]
    results: dict[str, list[Result]] = {"echo": [], "calls": []}
    async with AsyncExitStack() as stack:
        load, echo, look_up = [
            (await stack.enter_async_context(connected(each))).client
            for each in (ours.target(case.service), target(system.echo), ours.target(booking.service))
        ]
        [booked] = (await look_up.run(calls_of(booking.path, booking.requests[:1]), keep_replies=True)).replies
        calls, echoed = calls_of(case.path, case.requests), calls_of(f"/echo/{booking.reply}", [booked])
        for _ in range(2):
            await load.run(calls, IN_FLIGHT)
        for _ in range(TURNS):
            results["echo"].append(await echo.run(cycle(echoed), IN_FLIGHT, seconds=SECONDS))
            results["calls"].append(done := await load.run(cycle(calls), IN_FLIGHT, seconds=SECONDS))
            assert done.sources["hit"] >= ENOUGH * done.calls
    return results
