"""The metrics of a service with several workers: each writes its samples to a file, and any worker adds up the files.

A worker writes its file every second, and before it returns the sum. A worker that replaces a dead one continues from
the counters in its file. So no counter ever falls, and a killed worker loses at most a second of counts.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel

from libs.db.stats import QueryStats, SlowQuery
from libs.server.workers import Worker

# Gauges of which the service has the least, or the greatest, of its workers' values. All others are added up.
LEAST = frozenset({"parlor_cache_connected", "parlor_db_available", "process_start_time_seconds", "process_max_fds"})
GREATEST = frozenset({"parlor_changes_delay_seconds", "parlor_rollups_sealed_time_seconds"})
STALE_SECONDS = 5.0  # gauges in an older file do not count: its worker died, or hangs

Key: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]  # metric, sample, labels


class Snapshot(BaseModel):
    """The metrics of one worker or, added up, of several; `time` is the monotonic clock's, in s."""

    time: float = -inf
    metrics: dict[str, tuple[str, str]] = {}  # type and help
    samples: list[tuple[Key, int | float]] = []
    slow_queries: list[SlowQuery] = []

    def add(self, other: "Snapshot") -> "Snapshot":
        """Return the sum, with the last 100 slow queries. A stale snapshot adds no gauges."""
        values, is_stale = dict(self.samples), other.time < self.time - STALE_SECONDS
        for key, value in other.samples:
            if not (is_stale and other.metrics[key[0]][0] == "gauge"):
                before = values.get(key)
                values[key] = value if before is None else _sum(key[0], before, value)
        slow_queries = sorted([*self.slow_queries, *other.slow_queries], key=lambda each: each.time)[-100:]
        metrics, samples = self.metrics | other.metrics, list(values.items())
        return Snapshot(time=self.time, metrics=metrics, samples=samples, slow_queries=slow_queries)


def _sum(metric: str, one: float, other: float) -> float:
    if metric in LEAST:
        return min(one, other)
    return max(one, other) if metric in GREATEST else one + other


class WorkerMetrics(Collector):
    """Collects the metrics of all workers; `own` has those of this worker."""

    def __init__(self, own: CollectorRegistry, queries: QueryStats, worker: Worker) -> None:
        self._own, self._queries, self._worker = own, queries, worker
        self._files = [worker.folder / f"{number}.json" for number in range(worker.count)]
        self._earlier = Snapshot()
        self._writing = threading.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Write this worker's file every second until the block ends, and once more then."""
        if not self._worker.is_alone:
            self._earlier = self._read(self._worker.number).model_copy(update={"time": -inf})  # without its gauges
        task = asyncio.create_task(self._write_every_second())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.to_thread(self._write)

    async def values(self) -> tuple[dict[str, Any], list[SlowQuery]]:
        """Return all samples, such as that of `parlor_cache_reads_total near`, and the last slow queries."""
        total = await asyncio.to_thread(self._total)
        values = {" ".join([name, *dict(labels).values()]): value for (_, name, labels), value in total.samples}
        return values, total.slow_queries

    def collect(self) -> Iterable[Metric]:
        """Return every metric. The counts of other workers are up to a second old."""
        total = self._total()
        metrics = {name: Metric(name, text, kind) for name, (kind, text) in total.metrics.items()}
        for (metric, name, labels), value in total.samples:
            metrics[metric].add_sample(name, dict(labels), value)
        return metrics.values()

    def _total(self) -> Snapshot:
        total = self._write()
        for number in range(self._worker.count):
            total = total if number == self._worker.number else total.add(self._read(number))
        return total

    async def _write_every_second(self) -> None:
        while not self._worker.is_alone:
            with suppress(OSError):  # such as a full disk
                await asyncio.to_thread(self._write)
            await asyncio.sleep(1)

    def _write(self) -> Snapshot:
        """Return this worker's metrics, once they are in its file: what was shown must be there for a replacement."""
        with self._writing:
            found = list(self._own.collect())
            samples = [((each.name, s.name, tuple(s.labels.items())), s.value) for each in found for s in each.samples]
            metrics = {each.name: (each.type, each.documentation) for each in found}
            own = Snapshot(
                time=time.monotonic(), metrics=metrics, samples=samples, slow_queries=list(self._queries.slow)
            )
            snapshot = own.add(self._earlier)
            if not self._worker.is_alone:
                new = self._files[self._worker.number].with_suffix(".new")
                new.write_text(snapshot.model_dump_json())
                new.replace(self._files[self._worker.number])
        return snapshot

    def _read(self, number: int) -> Snapshot:
        try:
            return Snapshot.model_validate_json(self._files[number].read_bytes())
        except FileNotFoundError:  # not written yet
            return Snapshot()
