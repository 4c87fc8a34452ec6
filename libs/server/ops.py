"""The OpsService, which every server serves besides its own service."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from libs.cache import Cache, Tag, server_figures, sizes
from libs.db import Database
from libs.server.errors import invalid_fields
from libs.server.worker_metrics import WorkerMetrics
from parlor.ops.v1 import ops_pb2, ops_pb2_grpc


def percent(part: float, whole: float) -> float:
    """Return 100 * part / whole with two decimals; 0 if `whole` is 0."""
    return round(100 * part / whole, 2) if whole else 0.0


class OpsService(ops_pb2_grpc.OpsServiceServicer):
    """Metrics of one service's cache and database, and invalidation by hand."""

    def __init__(
        self,
        cache: Cache,
        database: Database,
        metrics: WorkerMetrics,
        salon_tags: Callable[[str], Awaitable[list[Tag]]],
    ) -> None:
        """`metrics` are those of all workers; `salon_tags` returns all tags of a salon that the service can name."""
        self._cache = cache
        self._database = database
        self._metrics = metrics
        self._salon_tags = salon_tags

    async def GetCacheStatistics(self, request: Any, context: Any) -> ops_pb2.CacheStatistics:
        """Return the metrics of the cache."""
        cache, (values, _) = self._cache, await self._metrics.values()
        near, shared, misses, bypasses = (
            values[f"parlor_cache_reads_total {source}"] for source in ("near", "hit", "miss", "bypass")
        )
        hits = near + shared
        namespaces = cache.namespaces
        return ops_pb2.CacheStatistics(
            metrics=ops_pb2.CacheMetrics(
                hits=hits,
                misses=misses,
                sets=values["parlor_cache_sets_total"],
                invalidations=values["parlor_cache_invalidations_total"],
                errors=values["parlor_cache_errors_total"],
                total=hits + misses,
                hit_rate=percent(hits, hits + misses),
                refused_fills=values["parlor_cache_refused_fills_total"],
                bypasses=bypasses,
                near_hits=near,
                near_bytes=values["parlor_cache_near_bytes"],
            ),
            redis=ops_pb2.RedisStatus(**await server_figures(cache.store)),
            ttl={name: namespace.ttl for name, namespace in namespaces.items()},
            prefixes={name: namespace.prefix for name, namespace in namespaces.items()},
            sizes=await sizes(cache.store, namespaces.values()),
        )

    async def GetDatabaseMetrics(self, request: Any, context: Any) -> ops_pb2.DatabaseMetrics:
        """Return the metrics of the database."""
        (values, slow_queries), settings = await self._metrics.values(), self._database.settings
        executed, slow = values["parlor_db_queries_total"], values["parlor_db_slow_queries_total"]
        return ops_pb2.DatabaseMetrics(
            pool=_pool(values),
            queries=ops_pb2.QueryMetrics(
                queries_executed=executed,
                slow_queries=slow,
                query_errors=values["parlor_db_query_errors_total"],
                average_query_time=_mean_ms(values["parlor_db_query_seconds_total"], executed),
                slow_query_rate=percent(slow, executed),
            ),
            slow_queries=[
                ops_pb2.SlowQuery(query=each.query, duration_ms=round(each.duration_ms, 2), time=_timestamp(each.time))
                for each in reversed(slow_queries)
            ],
            config=ops_pb2.DatabaseConfig(
                connection_limit=settings.connection_limit,
                pool_timeout=settings.pool_timeout,
                query_timeout=settings.query_timeout,
                slow_query_threshold=settings.slow_query_threshold,
                statement_cache_size=settings.statement_cache_size,
            ),
        )

    async def InvalidateSalon(self, request: Any, context: Any) -> ops_pb2.InvalidateSalonResponse:
        """Invalidate all tags of a salon."""
        tags = await self._salon_tags(request.salon_id)
        return ops_pb2.InvalidateSalonResponse(invalidated=await self._cache.invalidate(*tags))

    async def InvalidateNamespace(self, request: Any, context: Any) -> ops_pb2.InvalidateNamespaceResponse:
        """Invalidate a namespace."""
        namespaces = self._cache.namespaces
        if (namespace := namespaces.get(request.namespace)) is None:
            raise invalid_fields([("namespace", f"must be one of {', '.join(namespaces)}")])
        return ops_pb2.InvalidateNamespaceResponse(invalidated=await self._cache.invalidate_namespace(namespace))

    async def InvalidatePattern(self, request: Any, context: Any) -> ops_pb2.InvalidatePatternResponse:
        """Invalidate every tag whose entries may match a pattern."""
        return ops_pb2.InvalidatePatternResponse(invalidated=await self._cache.invalidate_pattern(request.pattern))


def _pool(values: Mapping[str, Any]) -> ops_pb2.PoolMetrics:
    total, idle = values["parlor_db_pool_size"], values["parlor_db_pool_available"]
    limit, acquisitions = values["parlor_db_pool_max"], values["parlor_db_requests_total"]
    return ops_pb2.PoolMetrics(
        active=total - idle,
        total=total,
        limit=limit,
        utilization=percent(total, limit),
        idle=idle,
        average_acquisition_time=_mean_ms(values["parlor_db_requests_wait_seconds_total"], acquisitions),
        exhaustions=values["parlor_db_requests_errors_total"],
        connection_errors=values["parlor_db_connections_errors_total"] + values["parlor_db_connections_lost_total"],
        waiting=values["parlor_db_requests_waiting"],
        available=values["parlor_db_available"] == 1,
    )


def _mean_ms(seconds: float, count: int) -> float:
    return round(1000 * seconds / max(count, 1), 2)


def _timestamp(time: Any) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
