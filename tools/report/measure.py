"""The whole measurement."""

import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random

import psycopg
import redis
import uvloop
from rich.progress import Progress

from tools.report.cases import Case, cases
from tools.report.checks import headline, others, passed, targets
from tools.report.figures import Report, Row, Run, Slow, row
from tools.report.index_statements import INDEX_STATEMENTS
from tools.report.plans import explained, gains
from tools.report.pools import measure_pools
from tools.report.rows import Effort, Rpcs, measure_case
from tools.report.seed_figures import LINES
from tools.report.system import SLOW_MS, System, cores, system
from tools.report.ways import After, Before, connected
from tools.report.workload import Read, measure_workload, steps

SLOWEST = 5  # statements listed of each way


def measure(scale: int, effort: Effort, progress: Progress, *, cached: bool = True) -> Report:
    """Start a system, measure everything on it, and end it."""
    began = time.monotonic()
    with system(scale, progress) as running:
        measured: Report = uvloop.run(_measure(running, scale, effort, progress, began, cached=cached))
        return measured


async def _measure(
    system: System, scale: int, effort: Effort, progress: Progress, began: float, *, cached: bool
) -> Report:
    every = cases(system.database_url)
    async with connected(system) as (before, after, writer):
        rpcs = Rpcs(system, cached=cached)
        rows = await measure_rows(system, every, before, after, rpcs, effort, progress, cached=cached)
        task = progress.add_task("indexes", total=len(INDEX_STATEMENTS) + 1)
        plans = explained(system.database_url)
        progress.advance(task)
        indexes = gains(system, effort.rounds * 3, lambda: progress.advance(task))
        task = progress.add_task("workload and pools", total=2)
        done = steps(every, effort.operations, Random("report"))  # noqa: S311 - the same each time
        workload = await measure_workload(done, before, after, writer, cached=cached)
        progress.advance(task)
        reads = [what for what in done if isinstance(what, Read)][: effort.operations // 4]
        pools = await measure_pools(reads, before, after, rpcs)
        progress.advance(task)
        await rpcs.close()
        buffers = _buffer_hit_rate(system.database_url)
        checks = [*targets(rows), *others(workload, pools, plans, indexes, buffers)]
        return Report(
            run=_run(system, scale, effort, before, after, time.monotonic() - began, cached=cached),
            ok=passed(checks),
            headline=headline(checks),
            checks=checks,
            rows=rows,
            indexes=indexes,
            plans=plans,
            workload=workload,
            pools=pools,
            buffer_hit_rate=buffers,
            slow_before=before.queries.slow_total,
            slow_after=sum(database.queries.slow_total for database in after.databases.values()),
            slow=_slowest(before, after),
        )


async def measure_rows(
    system: System,
    wanted: Sequence[Case],
    before: Before,
    after: After,
    rpcs: Rpcs,
    effort: Effort,
    progress: Progress,
    *,
    cached: bool,
) -> list[Row]:
    """Measure cases; return the lines of the seed's tables that they are for."""
    task = progress.add_task("reads", total=len(wanted))
    measured = {}
    for case in wanted:
        progress.update(task, description=f"reads: {case.method}")
        measured[case.key] = case, await measure_case(system, case, before, after, rpcs, effort, cached=cached)
        progress.advance(task)
    lines = [(line, *measured[line.case]) for line in LINES if line.case in measured]
    return [row(line, case.method, case.index, at) for line, case, at in lines]


def _slowest(before: Before, after: After) -> list[Slow]:
    """Return the slowest statements of each way, each statement once."""
    ways = {
        "before": list(before.queries.slow),
        "after": [slow for database in after.databases.values() for slow in database.queries.slow],
    }
    found = []
    for way, slow in ways.items():
        longest: dict[str, float] = {}
        for each in slow:
            longest[each.query] = max(each.duration_ms, longest.get(each.query, 0.0))
        ordered = sorted(longest.items(), key=lambda pair: -pair[1])[:SLOWEST]
        found += [Slow(way, query, round(ms, 1)) for query, ms in ordered]
    return found


def _buffer_hit_rate(database_url: str) -> float:
    """Return how many % of the pages were found in Postgres's own buffers, since the database was made."""
    with psycopg.connect(database_url) as conn:
        row = conn.execute(
            "SELECT 100.0 * blks_hit / greatest(blks_hit + blks_read, 1) FROM pg_stat_database"
            " WHERE datname = current_database()"
        ).fetchone()
    return round(float(row[0]), 2) if row else 0.0


def _run(
    system: System, scale: int, effort: Effort, before: Before, after: After, seconds: float, *, cached: bool
) -> Run:
    with psycopg.connect(system.database_url) as conn:
        version = conn.info.server_version
    with redis.Redis.from_url(system.redis_url) as client:
        server = client.info("server")
    return Run(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        postgres=f"PostgreSQL {version // 10000}.{version % 10000}",
        redis=f"Valkey {server['valkey_version']}"
        if "valkey_version" in server
        else f"Redis {server['redis_version']}",
        python=platform.python_version(),
        cores=cores(),
        scale=scale,
        rounds=effort.rounds,
        cached=cached,
        slow_ms=SLOW_MS,
        pool_before=before.limit,
        pool_after=after.limit,
        seconds=round(seconds, 1),
    )
