"""The figures of a service that has several workers, added up by whichever of them is asked.

Each worker tells its own on a unix socket in the folder that they share, and leaves there a copy of whatever it has
told. A worker that takes a dead one's place counts on from that copy, and until then the others read it. So no counter
that was seen ever falls, as if the service were one process; what a killed worker had counted since it was last asked
is lost.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel

from libs.db.stats import QueryStats, SlowQuery
from libs.server.workers import Worker

# Of several workers the sum shows the least of these.
LEAST = frozenset({"parlor_cache_connected", "parlor_db_available", "process_start_time_seconds", "process_max_fds"})
ANSWER_SECONDS = 1.0
MOST_SLOW_QUERIES = 100

Sample: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]  # its name and labels


class Family(BaseModel):
    """A metric, as Prometheus has it."""

    name: str
    documentation: str
    type: str
    samples: list[tuple[Sample, float]]


class Telling(BaseModel):
    """What a worker, or the whole service, has to tell."""

    families: list[Family] = []
    slow: list[SlowQuery] = []

    def counted(self) -> "Telling":
        """Return what stays true when the worker is gone: all but its gauges."""
        return Telling(families=[each for each in self.families if each.type != "gauge"], slow=self.slow)

    def value(self, name: str, *labels: str) -> float:
        """Return the sample with these values of its labels. Raises: KeyError."""
        return self._values[name, *labels]

    def count(self, name: str, *labels: str) -> int:
        """Return a sample that is a whole number. Raises: KeyError."""
        return int(self.value(name, *labels))

    @cached_property
    def _values(self) -> dict[tuple[str, ...], float]:
        return {
            (name, *(value for _, value in labels)): value
            for family in self.families
            for (name, labels), value in family.samples
        }


def add_up(tellings: Iterable[Telling]) -> Telling:
    """Return the sum of tellings; of what is only true if it is for all, the least."""
    families: dict[str, Family] = {}
    values: dict[str, dict[Sample, float]] = {}
    slow: list[SlowQuery] = []
    for telling in tellings:
        slow += telling.slow
        for family in telling.families:
            families.setdefault(family.name, family)
            found = values.setdefault(family.name, {})
            for sample, value in family.samples:
                least = family.name in LEAST or sample[0].endswith("_created")
                before = found.get(sample)
                found[sample] = value if before is None else min(before, value) if least else before + value
    return Telling(
        families=[each.model_copy(update={"samples": list(values[each.name].items())}) for each in families.values()],
        slow=sorted(slow, key=lambda each: each.time)[-MOST_SLOW_QUERIES:],
    )


class WorkerMetrics(Collector):
    """The figures of one worker and, through it, of all; `registry` has those of all."""

    def __init__(self, own: CollectorRegistry, queries: QueryStats, worker: Worker) -> None:
        self._own = own
        self._queries = queries
        self._worker = worker
        self._before = Telling()
        self._telling = threading.Lock()
        self.registry = own
        if not worker.is_alone:
            self.registry = CollectorRegistry()
            self.registry.register(self)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Answer the other workers, if there are any, until the block ends."""
        if self._worker.is_alone:
            yield
            return
        self._before = self._left_by(self._worker.number)
        server = await asyncio.start_unix_server(self._answer, self._path(self._worker.number, "socket"))
        try:
            yield
        finally:
            await asyncio.to_thread(self._tell)
            server.close()

    async def total(self) -> Telling:
        """Return the figures of the whole service."""
        return self._figures() if self._worker.is_alone else await asyncio.to_thread(self._total)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the whole service."""
        for family in self._total().families:
            metric = Metric(family.name, family.documentation, family.type)
            for (name, labels), value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric

    def _total(self) -> Telling:
        others = [self._ask(number) for number in range(self._worker.count) if number != self._worker.number]
        return add_up([self._tell(), *others])

    def _figures(self) -> Telling:
        families = [
            Family(
                name=metric.name,
                documentation=metric.documentation,
                type=metric.type,
                samples=[((each.name, tuple(each.labels.items())), each.value) for each in metric.samples],
            )
            for metric in self._own.collect()
        ]
        return Telling(families=families, slow=list(self._queries.slow))

    def _tell(self) -> Telling:
        """Return this worker's figures, after they are left for those who ask when it is gone."""
        with self._telling:
            told = add_up([self._before, self._figures()])
            new = self._path(self._worker.number, "new")
            new.write_text(told.model_dump_json())
            new.replace(self._path(self._worker.number, "json"))
        return told

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told = await asyncio.to_thread(self._tell)
        writer.write(told.model_dump_json().encode())
        writer.close()

    def _ask(self, number: int) -> Telling:
        """Return the figures of another worker, what it has left if it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(ANSWER_SECONDS)
                asking.connect(str(self._path(number, "socket")))
                with asking.makefile("rb") as answer:
                    return Telling.model_validate_json(answer.read())
        except (OSError, ValueError):  # away, or gone while it answered
            return self._left_by(number)

    def _left_by(self, number: int) -> Telling:
        """Return what was told last in a worker's place, as far as it stays true."""
        try:
            return Telling.model_validate_json(self._path(number, "json").read_bytes()).counted()
        except FileNotFoundError:
            return Telling()

    def _path(self, number: int, kind: str) -> Path:
        return self._worker.folder / f"{number}.{kind}"
