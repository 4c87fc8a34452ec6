"""Both ways' pools under 128 callers at once, and the services' own."""

from collections.abc import Awaitable, Callable, Sequence

import grpc
import psycopg
from psycopg_pool import PoolTimeout

from libs.db import DatabaseUnavailable, PoolExhausted
from parlor.ops.v1 import ops_pb2, ops_pb2_grpc
from tools.report.figures import PoolFigures, Pools, times
from tools.report.rows import Rpcs, timed
from tools.report.ways import After, Before, Counts
from tools.report.workload import Read

CALLERS = 128  # the seed's "120+"
FAILURES = (PoolTimeout, PoolExhausted, DatabaseUnavailable, psycopg.Error, grpc.aio.AioRpcError)


async def measure_pools(reads: Sequence[Read], before: Before, after: After, rpcs: Rpcs) -> Pools:
    """Have all callers read at once: the old way, ours from an empty cache on, and by RPCs that ask past the cache."""
    await after.forget()
    old = await _pool(reads, before)
    new = await _pool(reads, after)
    began = await _counts(rpcs)
    errors, taken = await _answers(lambda read: rpcs.of(read.case, cached=False)(read.ask), reads)
    counts = await _counts(rpcs) - began
    return Pools(CALLERS, old, new, times(taken), errors, counts.exhaustions, counts.connection_errors)


async def _pool(reads: Sequence[Read], way: Before | After) -> PoolFigures:
    way.waits.clear()
    began = way.counts()
    errors, taken = await _answers(lambda read: way.read(*read), reads)
    counts = way.counts() - began
    return PoolFigures(
        size=way.limit,
        acquisitions=len(way.waits),
        acquisition=times(way.waits or [0.0]),
        reads=times(taken),
        answered=len(taken) - errors,
        errors=errors,
        exhaustions=counts.exhaustions,
        connection_errors=counts.connection_errors,
    )


async def _answers(call: Callable[[Read], Awaitable[object]], reads: Sequence[Read]) -> tuple[int, list[float]]:
    """Return how many calls failed, and the times of all."""
    errors = 0

    async def counted(read: Read) -> None:
        nonlocal errors
        try:
            await call(read)
        except FAILURES:
            errors += 1

    taken = await timed(counted, reads, CALLERS)
    return errors, taken


async def _counts(rpcs: Rpcs) -> Counts:
    """Return what the services count themselves."""
    exhaustions = connection_errors = 0
    for channel in rpcs.channels.values():
        figures = await ops_pb2_grpc.OpsServiceStub(channel).GetDatabaseMetrics(ops_pb2.GetDatabaseMetricsRequest())
        exhaustions += figures.pool.exhaustions
        connection_errors += figures.pool.connection_errors
    return Counts(0, 0, exhaustions, connection_errors)
