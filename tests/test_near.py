"""The near cache of a service: replies of a process after a suspension, and the metrics."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic

import pytest

from parlor.booking.v1.booking_pb2 import GetSalonByPhoneNumberIdRequest, GetSalonRequest
from parlor.ops.v1.ops_pb2 import GetCacheStatisticsRequest
from tests.processes import Processes, processes, stubs
from tests.stack import SALON, Stack, cached, salon, warm

LEASE = 1.0
BY_ID, BY_PHONE = GetSalonRequest(salon_id=SALON), GetSalonByPhoneNumberIdRequest(phone_number_id=f"10{SALON}")


@pytest.fixture
def started(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Processes]:
    """The services again, as processes."""
    with processes(database_url, redis_url, tmp_path) as running:
        yield running


@pytest.fixture
async def other(started: Processes) -> AsyncIterator[Stack]:
    """Their stubs."""
    async with stubs(started) as stack:
        yield stack


async def test_a_suspended_process_is_not_further_behind_than_the_lease(
    stack: Stack, other: Stack, started: Processes
) -> None:
    await salon(stack, name="0")
    pid = started.services["booking"].pid
    for turn, seconds in enumerate((0.2, LEASE), 1):
        await warm(other.booking.GetSalonByPhoneNumberId, BY_PHONE)
        async with asyncio.timeout(10):
            sources = [""]
            while sources[-2:] != ["hit", "near"]:  # not stored yet, or dropped by the late push of the previous round
                sources.append((await cached(other.booking.GetSalon(BY_ID)))[1])
        os.kill(pid, signal.SIGSTOP)
        await salon(stack, name=str(turn))
        written = monotonic()
        await asyncio.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
        while (began := monotonic()) < written + 1.5 * LEASE:
            for reply in await asyncio.gather(
                other.booking.GetSalon(BY_ID), other.booking.GetSalonByPhoneNumberId(BY_PHONE)
            ):
                assert reply.name == str(turn) or (began < written + LEASE and reply.name == str(turn - 1))


async def test_near_hits_are_counted(stack: Stack) -> None:
    await salon(stack)
    sources: Counter[str] = Counter()
    async with asyncio.timeout(10):
        while sources["near"] < 5:
            sources[(await cached(stack.booking.GetSalon(BY_ID)))[1]] += 1
    metrics = (await stack.ops["booking"].GetCacheStatistics(GetCacheStatisticsRequest())).metrics
    assert (metrics.near_hits, metrics.hits) == (sources["near"], sources["near"] + sources["hit"])
    assert metrics.near_bytes > 500
