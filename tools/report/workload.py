"""The reference mix of docs/workloads.md, and many callers at once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import grpc

from parlor.ops.v1 import ops_pb2, ops_pb2_grpc
from tools.report.readers import After, timed
from tools.report.results import Check
from tools.workloads import IN_FLIGHT, Step, ceiling, warm_up

Channels: TypeAlias = dict[str, grpc.aio.Channel]
CROWD = 128  # callers: the predecessor's "120+"


async def check_load(
    steps: Sequence[Step], statements: Mapping[str, int], after: After, channels: Channels
) -> list[Check]:
    """Judge the database load and the hit rate of the calls. Each different read is made once before, uncounted.

    Writes are sent to a service's process, so that the pools of this process count only reads. The predecessor's
    `statements` of each method are counted, not sent.
    """
    sources: Counter[str] = Counter()

    async def make(step: Step) -> None:
        if step.writes:
            await send(channels, step)
        else:
            sources[(await after.read(step.service, step.method, step.request)).source] += 1

    before = warm_up(steps)
    await after.forget()
    await timed(make, before, callers=IN_FLIGHT)
    await after.settle()
    sources.clear()
    began = after.statements
    await timed(make, steps, callers=IN_FLIGHT)
    await after.settle()
    new = after.statements - began
    old = sum(statements[step.method] for step in steps if not step.writes)

    reads = sources.total()
    saved, hits = 100 * (1 - new / old), 100 * (sources["hit"] + sources["near"]) / reads
    best = 100 * ceiling(before, steps)
    figures = (
        f"{saved:.1f} % ({new:,} of {old:,} statements)",
        f"{hits:.1f} % (of {reads:,} reads; a perfect cache {best:.1f} %)",
    )
    return [
        Check("Database load saved", figures[0], "at least 75 %", "82 %", saved >= 75),
        Check("Cache hit rate", figures[1], "above 85 %", "87 %", hits > 85),
    ]


async def send(channels: Channels, step: Step, *metadata: tuple[str, str]) -> None:
    """Make a call to a service's process."""
    rpc: Any = channels[step.service].unary_unary(step.path)
    await rpc(step.request.SerializeToString(), metadata=metadata)


async def check_crowd(reads: Sequence[Step], after: After, channels: Channels, ops: Channels) -> list[Check]:
    """Have CROWD callers read at once: from an empty cache on, and by RPCs that bypass the cache."""
    errors = 0

    async def call(read: Step, *metadata: tuple[str, str]) -> None:
        nonlocal errors
        try:
            await send(channels, read, *metadata)
        except grpc.aio.AioRpcError:
            errors += 1

    await after.forget()
    began = await _pool_failures(ops)
    await timed(call, reads, callers=CROWD)
    await timed(lambda read: call(read, ("cache-control", "no-cache")), reads, callers=CROWD)
    failures = await _pool_failures(ops) - began
    calls = 2 * len(reads)
    answered = f"{calls - errors:,} of {calls:,} calls by {CROWD} callers, half of them uncached"
    return [
        Check("Callers at once", answered, "all answered", "120+", errors == 0),
        Check("Exhaustions and connection errors", str(failures), "none", "0/day", failures == 0),
    ]


async def _pool_failures(ops: Channels) -> int:
    """Return how often the services' pools were exhausted or lost a connection."""
    stubs: list[Any] = [ops_pb2_grpc.OpsServiceStub(channel) for channel in ops.values()]
    replies = [await stub.GetDatabaseMetrics(ops_pb2.GetDatabaseMetricsRequest()) for stub in stubs]
    return sum(reply.pool.exhaustions + reply.pool.connection_errors for reply in replies)
