"""The gain of the setting of libs/server/transport.py: the echo with it, in turn with the bare one."""

import os
from pathlib import Path
from statistics import median

import pytest
import uvloop

from parlor.booking.v1.booking_pb2 import Salon
from tests.benchmarks.load import Cost, Load, connected
from tests.benchmarks.rounds import Round, cpu, echo, in_turn, multiples
from tests.benchmarks.system import Echo, target

TURNS = 61
CALLS = {32: 320, 1: 100}


@pytest.mark.parametrize("in_flight", [32, 1])
def test_the_setting_makes_the_echo_cheaper(tmp_path: Path, in_flight: int) -> None:
    with Echo(tmp_path / "bare") as bare, Echo(tmp_path / "ours", os.environ["GRPC_EXPERIMENTS"]) as ours:

        async def measure() -> dict[str, list[Cost]]:
            async with connected(target(bare)) as to_bare, connected(target(ours)) as to_ours:
                rounds = {"bare": _rounds(to_bare), "ours": _rounds(to_ours)}
                return await in_turn(rounds, TURNS, CALLS[in_flight], in_flight)

        costs = uvloop.run(measure())
    ratio = round(median(multiples(costs, "bare", cpu)["ours"]), 2)
    print(f"transport: {ratio} of the bare echo, {in_flight} in flight")
    assert ratio < 1


def _rounds(load: Load) -> Round:
    return echo(load, Salon.DESCRIPTOR.full_name, Salon(salon_id="salon-123").SerializeToString())
