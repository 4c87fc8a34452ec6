"""What each read RPC costs, in turn with the echo of its own reply: medians of many short rounds, and the budget."""

import asyncio
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import pytest
import redis

from tests.benchmarks.cases import Case
from tests.benchmarks.conftest import ROWS, System
from tests.benchmarks.http2 import Headers
from tests.benchmarks.load import Target

ROUNDS = 15
ROUNDS_BY_KEY = 31  # they are short, and their budget is narrow
CALLS = {32: 320, 1: 100}
CALLS_BY_KEY = 320
FEW = 16  # requests that a warm round asks for, in turn
KINDS = ("near", "warm", "cold", "off")
NEAR = ["GetSalon", "GetSalonByPhoneNumberId"]
BY_KEY = [*NEAR, "GetBookingByCode"]
LISTS_OF_50 = ["ListBookings", "ListConversations", "ListMessages"]
BATCHES = ["BatchGetBookings", "BatchGetSalons"]  # of a hundred keys: five echoes are 0.05 a key
METHODS = [
    *BY_KEY,
    *LISTS_OF_50,
    *BATCHES,
    "ListBookingEvents",
    "ListResources",
    "GetConversation",
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
NOT_NEAR = (("cache-control", "max-age=3600"),)


class Budget(NamedTuple):
    """The most that a kind of read may cost, as a multiple of the echo."""

    kind: str
    methods: Sequence[str]
    most: dict[int, float]


BUDGET = (
    Budget("near", NEAR, {32: 1.1, 1: 1.15}),
    Budget("warm", [method for method in METHODS if method not in BATCHES], {32: 1.25, 1: 1.5}),
    Budget("warm", BATCHES, {32: 5, 1: 5}),
    Budget("cold", BY_KEY, {32: 1.5, 1: 1.9}),
    Budget("cold", LISTS_OF_50, {32: 4, 1: 4}),
)


def drop_entries(redis_url: str) -> None:
    """Unlink every entry and leave the metas: the next reads are misses of warm groups."""
    with redis.Redis.from_url(redis_url) as client:
        keys = [key for key in client.scan_iter("query:*", count=10_000) if not key.endswith((b"#meta", b"run-id"))]
        if keys:
            client.unlink(*keys)


@pytest.mark.parametrize("in_flight", [32, 1])
@pytest.mark.parametrize("method", [*METHODS, *NOT_CACHED])
def test_read(system: System, benchmark: Any, method: str, in_flight: int, pytestconfig: pytest.Config) -> None:
    figures = asyncio.run(measure(system, system.cases[method], in_flight))
    echo = median(figures.pop("echo"))
    ratios = {kind: round(median(values) / echo, 2) for kind, values in figures.items()}
    over = [
        f"{kind} costs {ratios[kind]}, may cost {most[in_flight]}"
        for kind, methods, most in BUDGET
        if method in methods and ratios[kind] > most[in_flight]
    ]
    cells = [f"{ratios[kind]:.2f}" if kind in ratios else "-" for kind in KINDS]
    row = f"| {method} | {in_flight} | {echo:.0f} | {' | '.join(cells)} |"
    pytestconfig.stash.setdefault(ROWS, []).append(row)
    benchmark.extra_info.update(ratios, echo_us=round(echo))
    benchmark.pedantic(lambda: asyncio.run(again(system, system.cases[method], in_flight)), rounds=3, warmup_rounds=1)
    assert not over
    if method == "SearchAvailability":
        booking = asyncio.run(measure(system, system.cases["GetBookingByCode"], in_flight))
        times = ratios["off"] * median(booking["echo"]) / median(booking["cold"])
        assert times <= 3


async def again(system: System, case: Case, in_flight: int) -> None:
    """Call a hundred times what is cached."""
    await target(system, case.service).round(case.path, case.requests[:1], 100, in_flight)


async def measure(system: System, case: Case, in_flight: int) -> dict[str, list[float]]:
    """Return the CPU a call, in us, of each round: echo, near, warm, cold, past the cache, and so on in turn."""
    server, echo = target(system, case.service), target(system, "echo")
    reply = await server.reply(case.path, case.requests[0])
    few = case.requests[:FEW]
    calls, rounds = (CALLS_BY_KEY, ROUNDS_BY_KEY) if case.method in BY_KEY else (CALLS[in_flight], ROUNDS)
    cached, near = case.method not in NOT_CACHED, case.method in NEAR
    figures: dict[str, list[float]] = {"echo": []}

    async def add(kind: str, source: str, requests: Sequence[bytes], calls: int, metadata: Headers = ()) -> None:
        done = await server.round(case.path, requests, calls, in_flight, metadata)
        assert done.source == source
        figures.setdefault(kind, []).append(done.cpu_us)

    await server.round(case.path, case.requests, len(case.requests), 32)
    for turn in range(rounds):
        first = turn * calls % len(case.requests)
        some = [*case.requests[first:], *case.requests[:first]][:calls]
        figures["echo"].append((await echo.round(f"/echo/{case.reply}", [reply], calls, in_flight)).cpu_us)
        if cached:
            drop_entries(system.redis_url)
            await add("cold", "miss", some, len(some))
            await server.round(case.path, few, 2 * FEW, 1)
            await add("warm", "hit", few, calls, NOT_NEAR if near else ())
        if near:
            await add("near", "near", few, calls)
        await add("off", "bypass" if cached else "", some, calls, NO_CACHE)
    return figures


def target(system: System, name: str) -> Target:
    """Return where to call a server, and its process."""
    server = system.servers[name]
    return Target(server.port, server.pid)
