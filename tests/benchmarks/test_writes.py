"""The CPU of writes and of the mixed workload, 32 in flight, in turn with an echo: medians of many rounds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import uvloop

from tests.benchmarks.budget import WRITE_ECHOES, judge
from tests.benchmarks.conftest import Report
from tests.benchmarks.load import Cost, Load, connected
from tests.benchmarks.rounds import Round, bookings, cpu, echo_of, in_turn, medians, mixed, multiples, webhooks
from tests.benchmarks.system import System, Variant

Maker = Callable[[Variant, Load], Round]

TURNS = 11
CALLS = 320
MIXED_CALLS = 2000
IN_FLIGHT = 32
TITLE = "Writes, and a mix of 95 % reads and 5 % writes, 32 in flight: server CPU per RPC in echoes."


def test_create_booking_costs_at_most_its_budget(system: System, report: Report, benchmark: Any) -> None:
    echoes = measure(system, report, benchmark, "CreateBooking", bookings, CALLS)
    judge("CreateBooking", echoes, WRITE_ECHOES["CreateBooking"])


def test_ingest_webhook_costs_at_most_its_budget(system: System, report: Report, benchmark: Any) -> None:
    assert measure(system, report, benchmark, "IngestWebhook", webhooks, CALLS) <= WRITE_ECHOES["IngestWebhook"]


def test_the_mixed_workload_is_measured(system: System, report: Report, benchmark: Any) -> None:
    measure(system, report, benchmark, "mixed", mixed, MIXED_CALLS)


def measure(system: System, report: Report, benchmark: Any, name: str, make: Maker, count: int) -> float:
    """Measure rounds in turn with the echo of a booking; report the row, and return its cost in echoes."""
    costs = benchmark.pedantic(lambda: uvloop.run(_measure(system, make, count)), rounds=1)
    us, echoes = medians(costs, cpu), round(median(multiples(costs, "echo", cpu)["run"]), 3)
    benchmark.extra_info["echoes"] = echoes
    report.add(TITLE, name, echo_us=f"{us['echo']:.0f}", us=f"{us['run']:.0f}", echoes=f"{echoes:.2f}")
    return echoes


async def _measure(system: System, make: Maker, count: int) -> dict[str, list[Cost]]:
    ours = system.variants["ours"]
    async with AsyncExitStack() as stack:
        run = make(ours, await stack.enter_async_context(connected(*ours.targets)))
        echo = await echo_of(stack, system, ours, system.cases["GetBookingByCode"])
        await run(0, 3 * count, IN_FLIGHT)  # to warm the cache and prepare statements
        return await in_turn({"echo": echo, "run": run}, TURNS, count, IN_FLIGHT)
