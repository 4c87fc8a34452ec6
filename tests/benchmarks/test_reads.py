"""Each read RPC warm, cold and past the cache, in turn with the echo of its own reply: medians of the rounds."""

import asyncio
from statistics import median
from typing import Any

import pytest
import redis

from tests.benchmarks.cases import CALLS
from tests.benchmarks.conftest import ROWS, System
from tests.benchmarks.load import Target

ROUNDS = 5
METHODS = [
    "GetSalon",
    "GetSalonByPhoneNumberId",
    "GetBookingByCode",
    "BatchGetBookings",
    "ListBookings",
    "ListBookingEvents",
    "ListResources",
    "GetConversation",
    "ListConversations",
    "ListMessages",
    "SearchMessages",
    "ListAiMessages",
    "GetSalonStats",
    "ListBookingStats",
    "ListConversationStats",
    "GetMessageDirectionStats",
    "GetAiAnalytics",
]
NOT_CACHED = ["ListSalons", "SearchAvailability", "GetMessage"]
NO_CACHE = (("cache-control", "no-cache"),)


def drop_entries(redis_url: str) -> None:
    """Unlink every entry and leave the metas: the next reads are misses of warm groups."""
    with redis.Redis.from_url(redis_url) as client:
        keys = [key for key in client.scan_iter("query:*", count=10_000) if not key.endswith((b"#meta", b"run-id"))]
        if keys:
            client.unlink(*keys)


@pytest.mark.parametrize("in_flight", [32, 1])
@pytest.mark.parametrize("method", METHODS)
def test_read(system: System, benchmark: Any, method: str, in_flight: int, pytestconfig: pytest.Config) -> None:
    figures = asyncio.run(measure(system, method, in_flight))
    echo, *others = (median(values) for values in figures.values())
    ratios = [round(value / echo, 2) for value in others]
    benchmark.extra_info.update(dict(zip(("warm", "cold", "off"), ratios, strict=True)), echo_us=round(echo))
    row = f"| {method} | {in_flight} | {echo:.0f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"
    pytestconfig.stash.setdefault(ROWS, []).append(row)
    benchmark.pedantic(lambda: asyncio.run(warm_round(system, method, in_flight)), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("in_flight", [32, 1])
@pytest.mark.parametrize("method", NOT_CACHED)
def test_read_that_is_not_cached(
    system: System, benchmark: Any, method: str, in_flight: int, pytestconfig: pytest.Config
) -> None:
    figures = asyncio.run(measure_uncached(system, method, in_flight))
    echo, off, booking = (median(values) for values in figures.values())
    ratios = {"off": round(off / echo, 2), "of_a_booking": round(off / booking, 2)}
    benchmark.extra_info.update(ratios, echo_us=round(echo))
    row = f"| {method} | {in_flight} | {echo:.0f} | - | - | {ratios['off']:.2f} |"
    pytestconfig.stash.setdefault(ROWS, []).append(row)
    if method == "SearchAvailability":
        assert ratios["of_a_booking"] <= 3
    benchmark.pedantic(lambda: asyncio.run(warm_round(system, method, in_flight)), rounds=3, warmup_rounds=1)


async def measure_uncached(system: System, method: str, in_flight: int) -> dict[str, list[float]]:
    """Return the CPU a call of each round: echo, the call, and a cold GetBookingByCode, A B C A B C."""
    case, booking = system.cases[method], system.cases["GetBookingByCode"]
    server, echo, other = target(system, case.service), target(system, "echo"), target(system, "booking")
    reply = await server.reply(case.path, case.requests[0])
    calls = CALLS if in_flight > 1 else CALLS // 2
    figures: dict[str, list[float]] = {"echo": [], "off": [], "booking": []}
    await server.round(case.path, case.requests, calls, 32)
    await other.round(booking.path, booking.requests, CALLS, 32)
    for _ in range(ROUNDS):
        figures["echo"].append((await echo.round(f"/echo/{case.reply}", [reply], calls, in_flight)).cpu_us)
        figures["off"].append((await server.round(case.path, case.requests, calls, in_flight)).cpu_us)
        drop_entries(system.redis_url)
        cold = await other.round(booking.path, booking.requests, calls, in_flight)
        assert cold.source == "miss"
        figures["booking"].append(cold.cpu_us)
    return figures


async def measure(system: System, method: str, in_flight: int) -> dict[str, list[float]]:
    """Return the CPU a call of each round: echo, warm, cold, past the cache, A B C D A B C D."""
    case = system.cases[method]
    server, echo = target(system, case.service), target(system, "echo")
    reply = await server.reply(case.path, case.requests[0])
    calls = CALLS if in_flight > 1 else CALLS // 2
    distinct = len(case.requests)
    figures: dict[str, list[float]] = {"echo": [], "warm": [], "cold": [], "off": []}
    await server.round(case.path, case.requests, distinct, 32)
    for _ in range(ROUNDS):
        figures["echo"].append((await echo.round(f"/echo/{case.reply}", [reply], calls, in_flight)).cpu_us)
        warm = await server.round(case.path, case.requests[:1], calls, in_flight)
        drop_entries(system.redis_url)
        cold = await server.round(case.path, case.requests, min(calls, distinct), in_flight)
        off = await server.round(case.path, case.requests, min(calls, distinct), in_flight, NO_CACHE)
        assert (warm.source, cold.source, off.source) == ("hit", "miss", "bypass")
        for name, figure in (("warm", warm), ("cold", cold), ("off", off)):
            figures[name].append(figure.cpu_us)
    return figures


async def warm_round(system: System, method: str, in_flight: int) -> None:
    """Call a hundred times what is cached."""
    case = system.cases[method]
    server = target(system, case.service)
    await server.round(case.path, case.requests[:1], 100, in_flight)


def target(system: System, name: str) -> Target:
    """Return where to call a server, and its process."""
    server = system.servers[name]
    return Target(server.port, server.pid)
