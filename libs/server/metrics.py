"""Prometheus metrics of one server, read from the counters that are kept anyway."""

from bisect import bisect_left
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

# Of several workers these tell the least, where counters and all other gauges are added up.
LEAST = frozenset({"parlor_cache_connected", "parlor_db_available", "process_start_time_seconds", "process_max_fds"})


BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)


class Latencies(Collector):
    """The times of RPCs, by method and code: the library's own histogram takes ten times as long to add to."""

    def __init__(self) -> None:
        """Start with none."""
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def add(self, method: str, code: str, seconds: float) -> None:
        """Count an RPC."""
        labels = method, code
        if (counts := self._counts.get(labels)) is None:
            counts, self._sums[labels] = [0] * (len(BUCKETS) + 1), 0.0
            self._counts[labels] = counts
        counts[bisect_left(BUCKETS, seconds)] += 1
        self._sums[labels] += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the one metric."""
        text = "Time of an RPC, from its parsing to its reply"
        family = HistogramMetricFamily("parlor_rpc_latency_seconds", text, labels=["method", "code"])
        bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
        for labels, counts in list(self._counts.items()):
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric(labels, buckets, self._sums[labels])
        yield family


class Figures(Collector):
    """Collects the figures of a cache, a database and a transport when they are asked for."""

    def __init__(self, cache: Cache, database: Database, http2: "Counters | None") -> None:
        """Remember whose figures to read; grpcio's server has none."""
        self._cache = cache
        self._database = database
        self._http2 = http2

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        if self._http2 is not None:
            yield from _http2_metrics(self._http2)
        cache, database = self._cache, self._database
        reads = CounterMetricFamily(
            "parlor_cache_reads", "Cached reads, by where the reply came from", labels=["source"]
        )
        for source, count in (
            ("near", cache.counters.near),
            ("hit", cache.counters.hits - cache.counters.near),
            ("miss", cache.counters.misses),
            ("bypass", cache.counters.bypasses),
        ):
            reads.add_metric([source], count)
        yield reads
        pool = database.pool.get_stats()
        for name, text, value in (
            ("parlor_cache_sets", "Entries stored", cache.counters.sets),
            ("parlor_cache_refused_fills", "Loader that might lack a write, not stored", cache.counters.refused_fills),
            ("parlor_cache_refreshes", "Hits loaded again behind their replies", cache.counters.refreshes),
            ("parlor_cache_warmed", "Entries loaded before anybody asked", cache.counters.warmed),
            ("parlor_cache_warmed_hits", "First hits on these: misses saved", cache.counters.warmed_hits),
            ("parlor_cache_invalidations", "CacheTags invalidated", cache.counters.invalidations),
            ("parlor_cache_near_drops", "CacheTags that the near cache dropped", cache.store.near.drops),
            ("parlor_cache_errors", "Calls to Redis that failed", cache.store.errors),
            ("parlor_db_queries", "Statements sent", database.queries.executed),
            ("parlor_db_query_errors", "Statements that failed", database.queries.errors),
            ("parlor_db_slow_queries", "Statements over the threshold", database.queries.slow_total),
            ("parlor_db_query_seconds", "Time of all statements", database.queries.seconds),
            ("parlor_db_acquisitions", "Connections lent", database.acquisitions),
            ("parlor_db_acquisition_seconds", "Time of all waits for a connection", database.acquisition_seconds),
            ("parlor_db_exhaustions", "Waits for a connection in vain", database.exhaustions),
            ("parlor_db_connection_errors", "Connections not opened", pool.get("connections_errors", 0)),
            ("parlor_db_connections_lost", "Connections lost", database.lost + pool.get("connections_lost", 0)),
        ):
            yield CounterMetricFamily(name, text, value=value)
        for name, text, value in (
            ("parlor_cache_connected", "Whether Redis is in use", cache.store.ready),
            ("parlor_cache_near_bytes", "Bytes in the near cache", cache.store.near.bytes),
            ("parlor_db_available", "Whether Postgres answers", database.available),
            ("parlor_db_connections", "Connections open", pool["pool_size"]),
            ("parlor_db_connections_idle", "Connections open and not in use", database.idle),
            ("parlor_db_connections_limit", "Most connections there may be", database.settings.connection_limit),
            ("parlor_db_connections_awaited", "Requests that wait for one", pool.get("requests_waiting", 0)),
        ):
            yield GaugeMetricFamily(name, text, value=value)


def _http2_metrics(counters: "Counters") -> Iterator[Metric]:
    for name, text, value in (
        ("parlor_http2_connections_opened", "Connections accepted", counters.connections_opened),
        ("parlor_http2_connections_refused", "Connections beyond MAX_CONNECTIONS", counters.connections_refused),
        ("parlor_http2_connections_retired", "Connections told to end: their age, idle", counters.connections_retired),
        ("parlor_http2_connections_timed_out", "Connections whose client was gone", counters.connections_timed_out),
        ("parlor_http2_protocol_errors", "Connections ended for what was no HTTP/2", counters.protocol_errors),
        ("parlor_http2_floods", "Connections ended for frames that only cost", counters.floods),
        ("parlor_http2_streams", "Requests begun", counters.streams),
        ("parlor_http2_streams_reset", "Requests that their clients gave up", counters.streams_reset),
        ("parlor_http2_calls_invalid", "Requests that were no valid call of a method", counters.calls_invalid),
        ("parlor_http2_calls_refused", "Requests beyond MAX_CALLS", counters.calls_refused),
        ("parlor_http2_requests_timed_out", "Requests that did not come in time", counters.requests_timed_out),
        ("parlor_http2_requests_refused", "Requests beyond what may be received at once", counters.requests_refused),
        ("parlor_http2_requests_too_large", "Requests larger than their method takes", counters.requests_too_large),
        ("parlor_http2_replies_refused", "Replies beyond what may wait for clients", counters.replies_refused),
        ("parlor_http2_deadlines_exceeded", "Requests ended at their clients' deadlines", counters.deadlines_exceeded),
    ):
        yield CounterMetricFamily(name, text, value=value)
    for name, text, value in (
        ("parlor_http2_connections", "Connections open", counters.connections),
        ("parlor_http2_calls", "Requests under way", counters.calls),
        ("parlor_http2_receiving_bytes", "Bytes of requests under way", counters.receiving),
        ("parlor_http2_sending_bytes", "Bytes of replies that wait for clients", counters.sending),
    ):
        yield GaugeMetricFamily(name, text, value=value)
