"""Rounds of calls on a variant of the services: warm, cold, near, past the cache, writes and a mix of all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import cycle, islice
from statistics import median

import redis

from parlor.booking.v1.booking_pb2 import Booking
from parlor.messaging.v1.messaging_pb2 import IngestWebhookResponse
from tests.benchmarks.cases import MESSAGES, Case, path_of
from tests.benchmarks.client import Call, Headers, Metadata, Result, calls_of, framed, headers_of
from tests.benchmarks.load import BEHIND_SECONDS, Cost, Load, connected
from tests.benchmarks.system import SERVICES, System, Variant, target

NO_CACHE: Metadata = (("cache-control", "no-cache"),)
NOT_NEAR: Metadata = (("cache-control", "max-age=3600"),)
NEAR = ("GetSalon", "GetSalonByPhoneNumberId")
MOST_PASSES = 10  # to warm requests: a concurrent write may prevent a fill
ENOUGH = 0.99  # required share of a round's calls from the expected source

# A round: `turn` (which selects the requests), the number of calls, and how many are in flight.
Round = Callable[[int, int, int], Awaitable[Cost]]
Figure = Callable[[Cost], float]


class WrongSource(Exception):
    """Replies came from a source other than that of the round."""


class Reads:
    """Rounds of one read RPC of a variant."""

    def __init__(self, variant: Variant, load: Load, case: Case, *, cached: bool = True) -> None:
        """`load` is connected to the service."""
        self._redis_url, self._load, self._cached = variant.redis_url, load, cached
        self._plain = calls_of(case.path, case.requests)
        self._off = calls_of(case.path, case.requests, NO_CACHE) if cached else self._plain
        self._warm = calls_of(case.path, case.requests, NOT_NEAR) if case.method in NEAR else self._plain

    async def prepare(self) -> None:
        """Make every read once, so that all tags are known."""
        await self._load.client.run(self._plain, 32)

    async def cold(self, turn: int, count: int, in_flight: int) -> Cost:
        """Misses whose tags are known; at most one per different request."""
        drop_entries(self._redis_url)
        await asyncio.sleep(BEHIND_SECONDS)  # invalidations reach the near cache
        calls = window(self._plain, turn, min(count, len(self._plain)))
        return _checked(await self._load.round(calls, in_flight), "miss")

    async def warm(self, turn: int, count: int, in_flight: int) -> Cost:
        """Hits in the shared cache."""
        return await self._hits(window(self._warm, turn, count), in_flight, "hit")

    async def near(self, turn: int, count: int, in_flight: int) -> Cost:
        """Hits in the near cache."""
        return await self._hits(window(self._plain, turn, count), in_flight, "near")

    async def off(self, turn: int, count: int, in_flight: int) -> Cost:
        """Reads that bypass the cache."""
        cost = await self._load.round(window(self._off, turn, count), in_flight)
        return _checked(cost, "bypass") if self._cached else cost

    async def _hits(self, calls: Sequence[Call], in_flight: int, source: str) -> Cost:
        """Make the calls until all are hits, then measure; repeat if entries have expired, as near ones soon do."""
        distinct = list({call.body: call for call in calls}.values())
        for _ in range(MOST_PASSES):
            if not _is_from((await self._load.client.run(distinct, 32)), source):
                continue
            if _is_from((cost := await self._load.round(calls, in_flight)).result, source):
                return cost
        raise WrongSource(f"{dict(self._load.client.result.sources)}, not {source}")


def _is_from(result: Result, source: str) -> bool:
    return result.sources[source] >= ENOUGH * result.calls


def _checked(cost: Cost, source: str) -> Cost:
    if not _is_from(cost.result, source):
        raise WrongSource(f"{dict(cost.result.sources)}, not {source}")
    return cost


def window(calls: Sequence[Call], turn: int, count: int) -> list[Call]:
    """Return `count` calls, in each turn the next ones; at the end it starts over."""
    first = turn * count % len(calls)
    return list(islice(cycle(calls), first, first + count))


def drop_entries(redis_url: str) -> None:
    """Unlink every entry but keep the tag version records: the next reads are misses whose tags are known."""
    with redis.Redis.from_url(redis_url) as client:
        keys = [key for key in client.scan_iter("query:*", count=10_000) if not key.endswith((b"#meta", b"run-id"))]
        if keys:
            client.unlink(*keys)


def bookings(variant: Variant, load: Load) -> Round:
    """Return rounds of CreateBooking; `load` is connected to all services, in the order of SERVICES."""
    requests = variant.writes.bookings
    return _writes(load, "booking", "CreateBooking", requests, lambda reply: bool(Booking.FromString(reply).etag))


def webhooks(variant: Variant, load: Load) -> Round:
    """Return rounds of IngestWebhook, one message each; `load` is connected to all services, in the order of SERVICES.

    Messaging reads the salon from booking, whose CPU counts too.
    """
    one = IngestWebhookResponse(messages=1).SerializeToString()
    return _writes(load, "messaging", "IngestWebhook", variant.writes.webhooks, one.__eq__)


def bodies(variant: Variant, load: Load) -> Round:
    """Return rounds as `webhooks` does, of MESSAGES messages each."""
    all_new = IngestWebhookResponse(messages=MESSAGES).SerializeToString()
    return _writes(load, "messaging", "IngestWebhook", variant.writes.bodies, all_new.__eq__)


def _writes(
    load: Load, service: str, method: str, requests: Iterable[bytes], is_done: Callable[[bytes], bool]
) -> Round:
    headers, server = headers_of(path_of(service, method)), SERVICES.index(service)

    async def run(turn: int, count: int, in_flight: int) -> Cost:
        calls = [Call(headers, framed(request), server) for request in islice(requests, count)]
        cost = await load.round(calls, in_flight, keep_replies=True)
        if not all(map(is_done, cost.result.replies)):
            raise ValueError("a write was answered OK and not done")
        return cost

    return run


def mixed(variant: Variant, load: Load) -> Round:
    """Return rounds of the mixed workload; `load` is connected to all services, in the order of SERVICES."""
    headers: dict[str, Headers] = {}

    def call(service: str, method: str, request: bytes) -> Call:
        path = path_of(service, method)
        return Call(headers.setdefault(path, headers_of(path)), framed(request), SERVICES.index(service))

    async def run(turn: int, count: int, in_flight: int) -> Cost:
        steps = islice(variant.writes.steps, count)
        calls = [call(step.service, step.method, step.request.SerializeToString()) for step in steps]
        return await load.round(calls, in_flight)

    return run


def echo(load: Load, case: str, reply: bytes) -> Round:
    """Return rounds of the echo, with the message of a reply; `case` is its full name."""
    [call] = calls_of(f"/echo/{case}", [reply])

    async def run(turn: int, count: int, in_flight: int) -> Cost:
        return await load.round([call] * count, in_flight)

    return run


async def reads(stack: AsyncExitStack, variant: Variant, case: Case, *, cached: bool = True) -> Reads:
    """Return the rounds of a read, on a separate connection."""
    load = await stack.enter_async_context(connected(variant.target(case.service)))
    made = Reads(variant, load, case, cached=cached)
    await made.prepare()
    return made


async def echo_of(stack: AsyncExitStack, system: System, variant: Variant, case: Case) -> Round:
    """Return rounds of the echo of a read's reply."""
    async with connected(variant.target(case.service)) as load:
        reply = await load.reply(calls_of(case.path, case.requests[:1])[0])
    return echo(await stack.enter_async_context(connected(target(system.echo))), case.reply, reply)


async def in_turn(rounds: Mapping[str, Round], turns: int, count: int, in_flight: int) -> dict[str, list[Cost]]:
    """Run the rounds in turn, `turns` times; return the costs by name."""
    costs: dict[str, list[Cost]] = {name: [] for name in rounds}
    for turn in range(turns):
        for name, run in rounds.items():
            costs[name].append(await run(turn, count, in_flight))
    return costs


def medians(costs: Mapping[str, Sequence[Cost]], figure: Figure) -> dict[str, float]:
    """Return the median of a figure of the rounds, by name."""
    return {name: median(map(figure, of_one)) for name, of_one in costs.items()}


def multiples(costs: Mapping[str, Sequence[Cost]], unit: str, figure: Figure) -> dict[str, list[float]]:
    """Return a figure of each round as a multiple of the unit's round in the same turn, by name.

    The two follow each other directly, so that other load of the machine affects their ratio least.
    """
    return {
        name: [figure(cost) / figure(one) for cost, one in zip(of_one, costs[unit], strict=True)]
        for name, of_one in costs.items()
        if name != unit
    }


def cpu(cost: Cost) -> float:
    """Return the server CPU per call, in us."""
    return cost.cpu_us


def p50(cost: Cost) -> float:
    """Return the median latency, in us."""
    return cost.result.percentile_us(0.5)
