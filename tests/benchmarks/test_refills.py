"""Hit rates in steady state: refills, both profiles of TTLs, and sub-tags of lists of days (decisions 0064 and 0066).

The trace is Zipf's of docs/workloads.md, with each of its reads made once before. The second half of the calls counts.
TTLs need time to matter: a model replays them at 100 calls/s. The real services must come near to it where no TTL ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
from google.protobuf.timestamp_pb2 import Timestamp

from libs.cache import Tag
from libs.cache.refresh_ahead import LEAST_SHARE, WEIGHT
from ops.servers import Postgres
from services.cache_tags import CacheTags
from services.namespaces import NAMESPACES
from tests.benchmarks.test_workloads import Databases, play
from tests.stack import running, unconnected_cache
from tools.workloads import DAY, NOW, ZIPF, Step, Trace, salons, warm_up

CALLS = 30_000
RATE = 100  # calls per second
KNOWN = 10_000
MOST_LOADS_RATIO = 1.35  # of refills, to no refills
NEAR = 0.02
LEAST_GAIN = 0.01  # of lists of days that outlive writes to other days


class BusyDays(Trace):
    """The trace with bookings that are made on, and moved to, the days that are listed; more than there is room for."""

    def hour(self) -> dict[str, Any]:
        """Return an hour of a day that is listed."""
        start = NOW + DAY * self.popular(range(7)) + 3600 * self.random.randrange(8, 19)
        return {"start_time": Timestamp(seconds=start), "end_time": Timestamp(seconds=start + 3600)}


class SalonWideLists(CacheTags):
    """Every list of bookings depends on the salon's tag, as in 0.3."""

    def bookings_between(self, salon_id: str, start: int, end: int) -> Tag:
        """Return the salon's tag."""
        return self.bookings(salon_id)


@dataclass
class Known:
    """An entry that was missed: its service, and how often it is read between writes."""

    service: str
    share: float = LEAST_SHARE
    is_read: bool = True


@dataclass
class Model:
    """A cache with the rules of `Refiller`, and TTLs in s by the prefix of a tag; an empty dict for none."""

    refills: bool
    ttls: dict[str, int]
    hits: int = 0
    loads: int = 0
    _now: float = 0.0
    _kept: dict[str, dict[tuple[str, bytes], float]] = field(default_factory=dict)
    _known: OrderedDict[tuple[str, bytes], Known] = field(default_factory=OrderedDict)
    _of_tag: dict[str, dict[tuple[str, bytes], None]] = field(default_factory=dict)

    def run(self, steps: Sequence[Step]) -> None:
        """Make the calls."""
        for step in steps:
            self._now += 1 / RATE
            for tag in step.tags:
                self._write(tag, step.service) if step.writes else self._read(tag, step)

    def _write(self, tag: str, service: str) -> None:
        self._kept.pop(tag, None)
        if not self.refills:
            return
        for key in self._of_tag.get(tag, ()):
            if (known := self._known.get(key)) and known.service == service:
                known.share += WEIGHT * (known.is_read - known.share)
                known.is_read = False
                if known.share >= LEAST_SHARE:
                    self.loads += 1
                    self._kept.setdefault(tag, {})[key] = self._now

    def _read(self, tag: str, step: Step) -> None:
        entries = self._kept.setdefault(tag, {})
        ttl = next((ttl for prefix, ttl in self.ttls.items() if tag.startswith(prefix)), None)
        loaded = entries.get(step.key)
        if loaded is not None and (ttl is None or self._now - loaded < ttl):
            self.hits += 1
            if known := self._known.get(step.key):
                known.is_read = True
            return
        self.loads += 1
        entries[step.key] = self._now
        known = self._known.setdefault(step.key, Known(step.service))
        self._of_tag.setdefault(tag, {})[step.key] = None
        known.is_read = True
        self._known.move_to_end(step.key)
        if len(self._known) > KNOWN:
            self._known.popitem(last=False)


@dataclass(frozen=True)
class Calls:
    """The calls before the count begins, and those that count."""

    before: list[Step]
    counted: list[Step]

    @property
    def reads(self) -> int:
        """The number of reads that count."""
        return sum(not step.writes for step in self.counted)


@pytest.fixture(scope="module")
def databases(postgres: Postgres) -> Iterator[Databases]:
    """A database with the sample data, to be copied."""
    yield Databases(postgres)


@pytest.fixture(scope="module")
def calls(databases: Databases) -> Calls:
    """The trace."""
    return traced(databases, Trace, CacheTags)


def traced(databases: Databases, trace: type[Trace], tags: type[CacheTags]) -> Calls:
    """Return the calls of a kind of trace, with the tags of the services or others."""
    steps = list(trace(replace(ZIPF, calls=CALLS), salons(databases.url), tags(unconnected_cache())).steps())
    return Calls([*warm_up(steps), *steps[: CALLS // 2]], steps[CALLS // 2 :])


def modeled(calls: Calls, *, refills: bool, ttls: dict[str, int]) -> tuple[float, float]:
    """Return the hit rate, and the loads per read."""
    model = Model(refills, ttls)
    model.run(calls.before)
    model.hits = model.loads = 0
    model.run(calls.counted)
    return model.hits / calls.reads, model.loads / calls.reads


@pytest.mark.parametrize("refill", [0, KNOWN], ids=["without refills", "refills"])
async def test_the_services_come_near_the_model(
    calls: Calls, databases: Databases, redis_url: str, refill: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    cache = {"poll": 60_000, "timeout": 100, "ttl_profile": "long", "refill": refill}
    async with running(databases.copy("refills"), redis_url, cache=cache) as stack:
        await play(stack, calls.before)
        figures = await play(stack, calls.counted)
    rate = (figures["near"] + figures["hit"]) / calls.reads
    expected, _ = modeled(calls, refills=bool(refill), ttls={})
    with capsys.disabled():
        print(f"\nhit rate {rate:.3f}, of the model {expected:.3f}, {figures['statements']} statements")
    assert abs(rate - expected) <= NEAR
    if refill:
        assert rate >= 0.90


PROFILES = {
    "short": {each.prefix: each.ttl for each in NAMESPACES},
    "long": {each.prefix: each.long_ttl for each in NAMESPACES},
}


def test_the_long_profile_with_refills_reaches_90_percent(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        (name, refills): modeled(calls, refills=refills, ttls=ttls)
        for name, ttls in PROFILES.items()
        for refills in (False, True)
    }
    with capsys.disabled():
        print(f"\n| TTLs, {RATE} calls/s | refills | hit rate | loads per read |\n|---|---|---|---|")
        for (name, refills), (rate, loads) in found.items():
            print(f"| {name} | {'yes' if refills else 'no'} | {rate:.3f} | {loads:.3f} |")
    rate, loads = found["long", True]
    assert rate >= 0.90
    assert loads <= MOST_LOADS_RATIO * found["long", False][1]
    assert loads < found["short", False][1]


@pytest.mark.parametrize("trace", [Trace, BusyDays], ids=["new days", "listed days"])
def test_lists_of_days_that_outlive_writes_to_other_days_raise_the_hit_rate(
    databases: Databases, trace: type[Trace], capsys: pytest.CaptureFixture[str]
) -> None:
    of_salon, of_days = (
        modeled(traced(databases, trace, tags), refills=True, ttls=PROFILES["long"])
        for tags in (SalonWideLists, CacheTags)
    )
    with capsys.disabled():
        print(f"\nhit rate, loads per read: {of_salon[0]:.3f}, {of_salon[1]:.3f} with the salon's tag", end="; ")
        print(f"{of_days[0]:.3f}, {of_days[1]:.3f} with sub-tags")
    assert of_days[0] >= of_salon[0] + LEAST_GAIN
    assert of_days[1] <= of_salon[1]
