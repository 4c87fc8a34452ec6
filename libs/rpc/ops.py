"""The OpsService that every service serves beside its own."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from libs.cache import NAMESPACES, Cache, Group, server_figures, sizes
from libs.db import Database
from libs.rpc.errors import invalid_fields
from parlor.ops.v1 import ops_pb2, ops_pb2_grpc


def percent(part: float, whole: float) -> float:
    """Return 100 * part / whole with two decimals; 0 of nothing is 0."""
    return round(100 * part / whole, 2) if whole else 0.0


class OpsService(ops_pb2_grpc.OpsServiceServicer):
    """Figures of one service's cache and database, and invalidation by hand."""

    def __init__(self, cache: Cache, database: Database, salon_groups: Callable[[str], Awaitable[list[Group]]]) -> None:
        """`salon_groups` returns all groups of a salon that the service can name."""
        self._cache = cache
        self._database = database
        self._salon_groups = salon_groups

    async def GetCacheStatistics(self, request: Any, context: Any) -> ops_pb2.CacheStatistics:
        """Return the figures of the cache."""
        cache, counters = self._cache, self._cache.counters
        total = counters.hits + counters.misses
        namespaces = {name: cache.namespace(name) for name in NAMESPACES}
        return ops_pb2.CacheStatistics(
            metrics=ops_pb2.CacheMetrics(
                hits=counters.hits,
                misses=counters.misses,
                sets=counters.sets,
                invalidations=counters.invalidations,
                errors=cache.store.errors,
                total=total,
                hit_rate=percent(counters.hits, total),
                refused_fills=counters.refused_fills,
                bypasses=counters.bypasses,
                near_hits=counters.near,
                near_bytes=cache.store.near.bytes,
            ),
            redis=ops_pb2.RedisStatus(**await server_figures(cache.store)),
            ttl={name: namespace.ttl for name, namespace in namespaces.items()},
            prefixes={name: namespace.prefix for name, namespace in namespaces.items()},
            sizes=await sizes(cache.store, cache.settings),
        )

    async def GetDatabaseMetrics(self, request: Any, context: Any) -> ops_pb2.DatabaseMetrics:
        """Return the figures of the database."""
        queries, settings = self._database.queries, self._database.settings
        return ops_pb2.DatabaseMetrics(
            pool=self._pool(),
            queries=ops_pb2.QueryMetrics(
                queries_executed=queries.executed,
                slow_queries=queries.slow_total,
                query_errors=queries.errors,
                average_query_time=round(1000 * queries.seconds / max(queries.executed, 1), 2),
                slow_query_rate=percent(queries.slow_total, queries.executed),
            ),
            slow_queries=[
                ops_pb2.SlowQuery(query=slow.query, duration_ms=round(slow.duration_ms, 2), time=_timestamp(slow.time))
                for slow in reversed(queries.slow)
            ],
            config=ops_pb2.DatabaseConfig(
                connection_limit=settings.connection_limit,
                pool_timeout=settings.pool_timeout,
                query_timeout=settings.query_timeout,
                slow_query_threshold=settings.slow_query_threshold,
                statement_cache_size=settings.statement_cache_size,
            ),
        )

    def _pool(self) -> ops_pb2.PoolMetrics:
        database = self._database
        stats, limit = database.pool.get_stats(), database.settings.connection_limit
        total, idle = stats["pool_size"], stats["pool_available"]
        return ops_pb2.PoolMetrics(
            active=total - idle,
            total=total,
            limit=limit,
            utilization=percent(total, limit),
            idle=idle,
            average_acquisition_time=round(1000 * database.acquisition_seconds / max(database.acquisitions, 1), 2),
            exhaustions=database.exhaustions,
            connection_errors=stats.get("connections_errors", 0) + stats.get("connections_lost", 0),
            waiting=stats.get("requests_waiting", 0),
            available=database.available,
        )

    async def InvalidateSalon(self, request: Any, context: Any) -> ops_pb2.InvalidateSalonResponse:
        """Invalidate all groups of a salon."""
        groups = await self._salon_groups(request.salon_id)
        return ops_pb2.InvalidateSalonResponse(invalidated=await self._cache.invalidate(*groups))

    async def InvalidateNamespace(self, request: Any, context: Any) -> ops_pb2.InvalidateNamespaceResponse:
        """Invalidate a namespace."""
        if request.namespace not in NAMESPACES:
            raise invalid_fields([("namespace", f"must be one of {', '.join(NAMESPACES)}")])
        namespace = self._cache.namespace(request.namespace)
        return ops_pb2.InvalidateNamespaceResponse(invalidated=await self._cache.invalidate_namespace(namespace))

    async def InvalidatePattern(self, request: Any, context: Any) -> ops_pb2.InvalidatePatternResponse:
        """Invalidate what could match a pattern."""
        return ops_pb2.InvalidatePatternResponse(invalidated=await self._cache.invalidate_pattern(request.pattern))


def _timestamp(time: Any) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
