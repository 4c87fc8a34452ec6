"""The measurement: every read both ways in alternation, a workload, and many callers at once."""

import platform
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import cycle, islice
from statistics import median

import grpc
import psycopg
import redis
import uvloop
from rich.progress import Progress

from libs.cache import MAX_AGE
from ops.indexes import IndexReport, verify
from ops.recording import Statement, record
from services.cache_tags import CacheTags
from tools.report.cases import Case, Request, cases
from tools.report.readers import After, Before, connected, cores, timed
from tools.report.reference import LINES
from tools.report.results import Check, Reads, Report, Row, headline, judge, query_checks
from tools.report.system import System, system, without
from tools.report.workload import check_crowd, check_load
from tools.workloads import PREDECESSOR, Trace, salons

MOST_TRIES = 5
OFTEN = 8  # cached reads per uncached one: together they still take the least time
# The predecessor's statement for the only index that no RPC uses.
DIRECTIONS = Statement(
    "SELECT direction, count(*) FROM messages WHERE direction IN ($1, $2) AND salon_id = $3 GROUP BY direction",
    ("the predecessor's direction statistics",),
)


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds of up to `calls` calls or `seconds` s each, and `operations` of the workload."""

    rounds: int
    calls: int
    seconds: float
    operations: int


FULL = Effort(rounds=6, calls=128, seconds=0.6, operations=20_000)
QUICK = Effort(rounds=1, calls=64, seconds=0.06, operations=600)


def measure(scale: int, effort: Effort, progress: Progress) -> Report:
    """Start a system, measure everything on it, and stop it. Raises: StartError."""
    began = time.monotonic()
    with system(scale, progress) as running:
        task = progress.add_task("indexes and plans", total=1)
        indexes = verify(running.database_url, [*record(), DIRECTIONS])
        progress.advance(task)
        rows, checks = uvloop.run(_measure(running, effort, progress))
        checks += check_database(indexes, running.database_url)
        with redis.Redis.from_url(running.redis_url) as client:
            valkey = client.info("server")["valkey_version"]
    run = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "servers": f"{indexes.server}, Valkey {valkey}, Python {platform.python_version()}",
        "cores": cores(),
        "scale": scale,
        "seconds": round(time.monotonic() - began),
    }
    return Report(run, all(check.ok for check in checks), headline(checks), checks, rows)


async def _measure(system: System, effort: Effort, progress: Progress) -> tuple[list[Row], list[Check]]:
    every = cases(system.database_url)
    async with AsyncExitStack() as stack:
        channels = {name: grpc.aio.insecure_channel(f"127.0.0.1:{port}") for name, port in system.ports.items()}
        ops = {name: grpc.aio.insecure_channel(f"127.0.0.1:{port}") for name, port in system.ops_ports.items()}
        for channel in [*channels.values(), *ops.values()]:
            stack.push_async_callback(channel.close)
        before, after = await stack.enter_async_context(connected(system))
        rows = await measure_rows(system, every, before, after, effort, progress)
        task = progress.add_task("workload", total=2)
        wanted = replace(PREDECESSOR, calls=effort.operations)
        tags = CacheTags(after.caches["booking"])
        steps = list(Trace(wanted, salons(system.database_url), tags, ignore_rules=True).steps())
        statements = {case.method: len(case.statements) for case in every}
        load = await check_load(steps, statements, after, channels)
        progress.advance(task)
        reads = [step for step in steps if not step.writes][: effort.operations // 4]
        crowd = await check_crowd(reads, after, channels, ops)
        progress.advance(task)
    return rows, [*query_checks(rows), *load, *crowd]


async def measure_rows(
    system: System,
    wanted: Sequence[Case],
    before: Before,
    after: After,
    effort: Effort,
    progress: Progress,
    *,
    cached: bool = True,
) -> list[Row]:
    """Measure cases; return the lines of the predecessor's tables that they are for.

    Without `cached` every read bypasses the cache, also later reads of the same task.
    """
    MAX_AGE.set(None if cached else 0)
    task = progress.add_task("reads", total=len(wanted))
    measured = {}
    for case in wanted:
        progress.update(task, description=f"reads: {case.method}")
        with without(system.copy_url, case.index):
            measured[case.key] = case.method, await _measure_case(case, before, after, effort)
        progress.advance(task)
    return [judge(line, *measured[line.case]) for line in LINES if line.case in measured]


async def _measure_case(case: Case, before: Before, after: After, effort: Effort) -> Reads:
    """Warm up, then do the rounds: in each, "before", a first read of every request, and repeated reads."""
    requests = case.requests[: effort.calls]
    uncached, cached = (list(islice(cycle(requests), effort.calls * turns)) for turns in (1, OFTEN))
    old, first, repeated = list[float](), list[float](), list[float]()
    sources: Counter[str] = Counter()

    async def read_before(request: Request) -> None:
        await before.read(case, request)

    async def read_after(request: Request) -> None:
        sources[(await after.read(case.service, case.method, request.message)).source] += 1

    await timed(read_before, requests, effort.seconds)
    await timed(read_after, requests, effort.seconds)
    for _ in range(effort.rounds):
        old += await timed(read_before, uncached, effort.seconds)
        await after.forget()
        first += await timed(read_after, requests, effort.seconds)
        for _ in range(MOST_TRIES):  # a fill may be refused, and a busy machine may lose Redis for a moment
            await timed(read_after, requests)
            await after.settle()
            sources.clear()
            times = await timed(read_after, cached, effort.seconds)
            if not (sources["miss"] or sources["bypass"]):
                break
        repeated += times
    medians = [round(1000 * median(taken), 4) for taken in (old, first, repeated)]
    near, hits = (100 * count / sources.total() for count in (sources["near"], sources["near"] + sources["hit"]))
    return Reads(medians[0], medians[1], medians[2], hits, near)


def check_database(indexes: IndexReport, database_url: str) -> list[Check]:
    """Judge the indexes, the plans, and the share of pages that Postgres found in its buffers."""
    with psycopg.connect(database_url) as conn:
        query = "SELECT 100.0 * blks_hit / (blks_hit + blks_read) FROM pg_stat_database WHERE datname = %s"
        [(buffers,)] = conn.execute(query, [conn.info.dbname]).fetchall()
    used = [index.state == "present" and bool(index.rpcs) for index in indexes.indexes]
    plans = [plan.ok for plan in indexes.plans]
    return [
        Check("Indexes present and used", f"{sum(used)} of {len(used)}", "all", "13", all(used)),
        Check("Plans on their indexes", f"{sum(plans)} of {len(plans)}", "all", "4", all(plans)),
        Check("Buffer hit ratio", f"{buffers:.2f} %", "above 90 %", "above 90 %", buffers > 90),
    ]
