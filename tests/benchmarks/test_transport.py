"""What the setting of libs/rpc/transport.py gains: the echo with it, in turn with the bare one."""

import asyncio
import os
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from parlor.booking.v1.booking_pb2 import Salon
from tests.benchmarks.conftest import Echo
from tests.benchmarks.load import Target

ROUNDS = 61
CALLS = {32: 320, 1: 100}


@pytest.mark.parametrize("in_flight", [32, 1])
def test_transport(tmp_path: Path, benchmark: Any, in_flight: int) -> None:
    method, request = f"/echo/{Salon.DESCRIPTOR.full_name}", Salon(salon_id="salon-123").SerializeToString()
    with Echo(tmp_path / "bare") as bare, Echo(tmp_path / "ours", os.environ["GRPC_EXPERIMENTS"]) as ours:

        async def measure() -> dict[str, list[float]]:
            figures = defaultdict(list)
            for _ in range(ROUNDS):
                for name, echo in (("bare", bare), ("ours", ours)):
                    done = await Target(echo.port, echo.pid).round(method, [request], CALLS[in_flight], in_flight)
                    figures[name].append(done.cpu_us)
            return figures

        figures = benchmark.pedantic(lambda: asyncio.run(measure()), rounds=1)
    ratio = round(median(figures["ours"]) / median(figures["bare"]), 2)
    benchmark.extra_info["ours/bare"] = ratio
    print(f"transport: {ratio} of the bare echo, {in_flight} in flight")
    assert ratio < 1
