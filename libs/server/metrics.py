"""Prometheus metrics of one server, collected from counters that exist anyway. docs/operations.md lists them.

Names follow go-grpc-prometheus for RPCs, and psycopg_pool's statistics for the pool.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from libs.cache import Cache
from libs.db import Database

if TYPE_CHECKING:
    from libs.http2 import Counters

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)


class RpcMetrics(Collector):
    """Counts and times of RPCs. prometheus_client's own histogram takes ten times as long to observe a value."""

    def __init__(self) -> None:
        self.streaming: set[str] = set()  # the methods that are server streams
        self._handled: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._buckets: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, method: str, code: str, seconds: float) -> None:
        """Count an RPC of `method`, such as `parlor.ops.v1.OpsService/InvalidateSalon`; `code` as grpc.StatusCode's."""
        self._handled[method, code] += 1
        self._buckets[method][bisect_left(BUCKETS, seconds)] += 1
        self._seconds[method] += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield both metrics."""
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        handled = CounterMetricFamily("grpc_server_handled", "RPCs answered", labels=[*labels, "grpc_code"])
        for (method, code), count in list(self._handled.items()):
            handled.add_metric([*self._labels(method), _go_name(code)], count)
        yield handled
        text = "Time of an RPC from its request to its reply, in s"
        handling = HistogramMetricFamily("grpc_server_handling_seconds", text, labels=labels)
        bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
        for method, counts in list(self._buckets.items()):
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            handling.add_metric(self._labels(method), buckets, self._seconds[method])
        yield handling

    def _labels(self, method: str) -> list[str]:
        return ["server_stream" if method in self.streaming else "unary", *method.split("/")]


def _go_name(code: str) -> str:
    """Return a status code as grpc-go writes it: `NotFound` for NOT_FOUND."""
    return {"OK": "OK", "CANCELLED": "Canceled"}.get(code, code.title().replace("_", ""))


class ServerMetrics(Collector):
    """The metrics of a cache, a database and, unless grpcio's server is used, of the HTTP/2 transport."""

    def __init__(self, cache: Cache, database: Database, http2: "Counters | None") -> None:
        self._cache = cache
        self._database = database
        self._http2 = http2

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        if self._http2 is not None:
            yield from _http2_metrics(self._http2)
        yield from _cache_metrics(self._cache)
        yield from _database_metrics(self._database)


def _cache_metrics(cache: Cache) -> Iterator[Metric]:
    counters, store = cache.counters, cache.store
    reads = CounterMetricFamily("parlor_cache_reads", "Cached reads, by the source of the reply", labels=["source"])
    reads.add_metric(["near"], counters.near)
    reads.add_metric(["hit"], counters.hits - counters.near)
    reads.add_metric(["miss"], counters.misses)
    reads.add_metric(["bypass"], counters.bypasses)
    yield reads
    yield from _counters(
        ("parlor_cache_sets", "Entries stored", counters.sets),
        ("parlor_cache_refused_fills", "Loads not stored: they might lack a write", counters.refused_fills),
        ("parlor_cache_refreshes", "Entries loaded again before their TTL ended", counters.refreshes),
        ("parlor_cache_replica_loads", "Loads answered by the replica", counters.replica_loads),
        ("parlor_cache_replica_behind", "Loads that the replica could not show yet", counters.replica_behind),
        ("parlor_cache_refills", "Entries loaded again after a write of this service", counters.refills),
        ("parlor_cache_refill_hits", "First hits on these entries", counters.refill_hits),
        ("parlor_cache_invalidations", "Tags invalidated", counters.invalidations),
        ("parlor_cache_near_drops", "Tags dropped from the near cache", store.near.drops),
        ("parlor_cache_errors", "Failed calls to Redis", store.errors),
    )
    yield from _gauges(
        ("parlor_cache_connected", "1 if Redis is in use, else 0", store.ready),
        ("parlor_cache_near_bytes", "Size of the near cache, in bytes", store.near.bytes),
    )


def _database_metrics(database: Database) -> Iterator[Metric]:
    pool, queries = database.pool.get_stats(), database.queries
    yield from _counters(
        ("parlor_db_queries", "Statements sent", queries.executed),
        ("parlor_db_query_errors", "Statements that failed", queries.errors),
        ("parlor_db_slow_queries", "Statements over DB_SLOW_QUERY_THRESHOLD", queries.slow_total),
        ("parlor_db_query_seconds", "Time of all statements, in s", queries.seconds),
        ("parlor_db_requests", "Connections lent by the pool", database.acquisitions),
        ("parlor_db_requests_wait_seconds", "Time of all waits for a connection, in s", database.acquisition_seconds),
        ("parlor_db_requests_errors", "Requests that got no connection within DB_POOL_TIMEOUT", database.exhaustions),
        ("parlor_db_connections_errors", "Failed attempts to connect", pool.get("connections_errors", 0)),
        ("parlor_db_connections_lost", "Connections lost", database.lost + pool.get("connections_lost", 0)),
    )
    yield from _gauges(
        ("parlor_db_available", "1 if a primary answers, else 0", database.available),
        ("parlor_db_pool_size", "Open connections", pool["pool_size"]),
        ("parlor_db_pool_available", "Open connections not in use", database.idle),
        ("parlor_db_pool_max", "Maximum number of connections", database.settings.connection_limit),
        ("parlor_db_requests_waiting", "Requests waiting for a connection", pool.get("requests_waiting", 0)),
    )


def _http2_metrics(counters: "Counters") -> Iterator[Metric]:
    yield from _counters(
        ("parlor_http2_connections_opened", "Connections accepted", counters.connections_opened),
        ("parlor_http2_connections_refused", "Connections over MAX_CONNECTIONS, closed", counters.connections_refused),
        (
            "parlor_http2_connections_retired",
            "Connections ended for their age or idleness",
            counters.connections_retired,
        ),
        (
            "parlor_http2_connections_timed_out",
            "Connections closed because the client did not respond",
            counters.connections_timed_out,
        ),
        ("parlor_http2_protocol_errors", "Connections closed for invalid HTTP/2", counters.protocol_errors),
        ("parlor_http2_floods", "Connections closed for a flood of useless frames", counters.floods),
        ("parlor_http2_streams", "Requests begun", counters.streams),
        ("parlor_http2_streams_reset", "Requests canceled by their clients", counters.streams_reset),
        ("parlor_http2_calls_invalid", "Requests that are no valid gRPC call", counters.calls_invalid),
        ("parlor_http2_calls_refused", "Requests over MAX_CALLS, refused", counters.calls_refused),
        ("parlor_http2_requests_timed_out", "Requests not received in RECEIVE_TIMEOUT", counters.requests_timed_out),
        ("parlor_http2_requests_refused", "Requests over MAX_RECEIVING, refused", counters.requests_refused),
        ("parlor_http2_requests_too_large", "Requests larger than their method allows", counters.requests_too_large),
        ("parlor_http2_replies_refused", "Replies over MAX_SENDING, not sent", counters.replies_refused),
        ("parlor_http2_deadlines_exceeded", "Requests ended at their client's deadline", counters.deadlines_exceeded),
    )
    yield from _gauges(
        ("parlor_http2_connections", "Open connections", counters.connections),
        ("parlor_http2_calls", "Requests under way", counters.calls),
        ("parlor_http2_receiving_bytes", "Bytes held of requests under way", counters.receiving),
        ("parlor_http2_sending_bytes", "Bytes of replies that clients have not taken", counters.sending),
    )


def _counters(*metrics: tuple[str, str, float]) -> Iterator[Metric]:
    for name, text, value in metrics:
        yield CounterMetricFamily(name, text, value=value)


def _gauges(*metrics: tuple[str, str, float]) -> Iterator[Metric]:
    for name, text, value in metrics:
        yield GaugeMetricFamily(name, text, value=value)
