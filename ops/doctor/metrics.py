"""Checks of what the services' metrics say."""

from collections import defaultdict
from collections.abc import Iterator
from ssl import SSLContext
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from ops.doctor.findings import Finding, Limits

TIMEOUT_SECONDS = 5.0
Metrics = dict[str, float]


def read_metrics(url: str, tls: SSLContext | None = None) -> Metrics:
    """Return the metrics at a URL, summed by name; cached reads also by source. Raises: OSError, ValueError.

    `tls` is how to verify a server of https, and what to show it. Default: the authorities of the system, nothing.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    with urlopen(url, timeout=TIMEOUT_SECONDS, context=tls) as reply:  # noqa: S310 - the schemes are checked above
        text = reply.read().decode()
    sums: Metrics = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] += sample.value
            if source := sample.labels.get("source"):
                sums[f"{sample.name}.{source}"] += sample.value
    return sums


def examine_metrics(url: str, metrics: Metrics, limits: Limits) -> Iterator[Finding]:
    """Yield what is wrong in a service."""
    reads = metrics["parlor_cache_reads_total"]
    hits = metrics["parlor_cache_reads_total.near"] + metrics["parlor_cache_reads_total.hit"]
    if reads >= limits.fewest_cached_reads and hits < limits.hit_rate * reads:
        remedy = "set REDIS_TTL_PROFILE=long; freshness does not depend on TTLs"
        yield Finding("hit rate", url, f"{hits / reads:.0%} of {reads:,.0f} cached reads", remedy)
    most, size, idle = (metrics[f"parlor_db_pool_{name}"] for name in ("max", "size", "available"))
    if most and size - idle > limits.pool_use * most:
        remedy = "look for slow statements; then raise DB_CONNECTION_LIMIT"
        yield Finding("pool", url, f"{size - idle:.0f} of {most:.0f} connections in use", remedy)
    if not metrics["parlor_cache_connected"]:
        yield Finding("redis", url, "not connected", "look for the reason of `redis away` in the service's log")
    if not metrics["parlor_db_available"]:
        yield Finding("database", url, "no primary answers", "start Postgres, or promote a standby")
