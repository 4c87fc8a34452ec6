"""The counts of the load client, checked with the echo."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from itertools import repeat
from pathlib import Path

import pytest
import uvloop

from parlor.booking.v1.booking_pb2 import Salon
from tests.benchmarks.client import Call, CallsFailed, Client, Result, calls_of
from tests.benchmarks.system import Echo

PATH = f"/echo/{Salon.DESCRIPTOR.full_name}"
SALONS = [Salon(salon_id=f"salon-{number}").SerializeToString() for number in range(500)]


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Echo]:
    """A bare grpcio server."""
    with Echo(tmp_path / "echo.log") as echo:
        yield echo


def test_each_request_is_answered_once(echo: Echo) -> None:
    async def run() -> Result:
        with closing(await Client.connect([echo.port], 3)) as client:
            return await client.run(calls_of(PATH, SALONS), 32, keep_replies=True)

    result = uvloop.run(run())
    assert sorted(result.replies) == sorted(SALONS)
    assert (result.calls, result.errors, len(result.latencies)) == (500, 0, 500)
    assert 0 < result.percentile_us(0.5) <= result.percentile_us(0.99) <= max(result.latencies) * 1e6


def test_failures_are_counted_by_status(echo: Echo) -> None:
    calls = [*calls_of(PATH, SALONS[:7]), *calls_of("/echo/nothing", SALONS[:5]), *calls_of(PATH, [b"\xff"])]

    async def run(check: bool) -> Result:
        with closing(await Client.connect([echo.port])) as client:
            return await client.run(calls, 4, check=check)

    result = uvloop.run(run(False))
    assert result.statuses == {"OK": 7, "UNIMPLEMENTED": 5, "UNKNOWN": 1}
    with pytest.raises(CallsFailed, match="UNIMPLEMENTED"):
        uvloop.run(run(True))


def test_run_is_bounded_in_time(echo: Echo) -> None:
    async def run(calls: Iterator[Call]) -> Result:
        with closing(await Client.connect([echo.port])) as client:
            return await client.run(calls, 8, seconds=0.2)

    result = uvloop.run(run(repeat(calls_of(PATH, SALONS)[0])))
    assert result.calls > 8
    assert 0.19 <= result.seconds < 10  # the loop's clock is rounded


def test_calls_of_a_lost_connection_are_counted(echo: Echo) -> None:
    async def run() -> Result:
        with closing(await Client.connect([echo.port])) as client:
            asyncio.get_running_loop().call_later(0.2, echo.kill)
            with pytest.raises(ConnectionError):
                await client.run(repeat(calls_of(PATH, SALONS)[0]), 8)
            return client.result

    assert uvloop.run(run()).statuses["CONNECTION LOST"] > 0
