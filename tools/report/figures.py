"""What the report holds, as its HTML, Markdown and JSON show it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tools.report.seed_figures import Line


@dataclass(frozen=True)
class Times:
    """What calls took, in ms."""

    calls: int
    p50: float
    p95: float
    p99: float


def times(seconds: Sequence[float]) -> Times:
    """Return the quantiles of at least one time."""
    ordered = sorted(seconds)
    p50, p95, p99 = (round(1000 * ordered[int((len(ordered) - 1) * part)], 4) for part in (0.5, 0.95, 0.99))
    return Times(len(ordered), p50, p95, p99)


@dataclass(frozen=True)
class Measured:
    """A case at a number of callers at once.

    `before`, `first` and `after` are the time spent on data: the predecessor's, that of a first read, and that of a
    read again. `rpc` is the whole RPC of the last, `rpc_first` of a first read, where a line shows that. `hits` are the
    reads again that the cache answered, in %; `near` are those of them that needed no server.
    """

    callers: int
    before: Times
    first: Times
    after: Times
    rpc_first: Times | None
    rpc: Times
    hits: float
    near: float


@dataclass(frozen=True)
class Row:
    """A line of the seed's tables, measured: `at` one caller and many; the verdict is on the last."""

    table: str
    name: str
    rpc: str
    index: str
    first: bool
    seed_before_ms: float
    seed_after_ms: float
    at: list[Measured]
    before: Times
    after: Times
    whole: Times
    ratio: float
    target: float | None
    ok: bool
    verdict: str


def row(line: Line, rpc: str, index: str, at: list[Measured]) -> Row:
    """Judge a line by its median times at the most callers."""
    most = at[-1]
    after, whole = (most.first, most.rpc_first or most.rpc) if line.first else (most.after, most.rpc)
    ratio = after.p50 / most.before.p50
    ok = line.target is None or ratio <= line.target
    seed = line.after_ms / line.before_ms
    if line.target is None:
        verdict = "no worse than the seed's ratio" if ratio <= seed else "worse than the seed's ratio"
    else:
        verdict = "met" if ok else "NOT met"
    figures = line.before_ms, line.after_ms, at, most.before, after, whole, round(ratio, 4), line.target
    return Row(line.table, line.name, rpc, index, line.first, *figures, ok, verdict)


@dataclass(frozen=True)
class IndexGain:
    """An index: its size and use, and what its statement takes with and without it, in ms of Postgres's own time.

    Gains are % of the time without it; `expected` is the seed's, None where it has none.
    """

    name: str
    table: str
    columns: str
    size_bytes: int
    scans: int
    state: str
    serves: str
    with_ms: float
    without_ms: float
    gain: float
    expected: int | None
    verdict: str


@dataclass(frozen=True)
class Plan:
    """How Postgres ran a statement; `read_a_row` is the rows read for each one returned."""

    serves: str
    index: str
    sql: str
    text: str
    execution_ms: float
    rows_read: int
    rows_returned: int
    read_a_row: float
    ok: bool
    verdict: str


@dataclass(frozen=True)
class Workload:
    """Zipf reads with some writes: what the cache answered, and what was left for Postgres, the writes' own excluded.

    `asks` are the different reads. Rates are %; `average` is the mean time on data of a read, in ms.
    """

    asks: int
    reads: int
    writes: int
    callers: int
    hits: int
    hit_rate: float
    refused_fills: int
    statements_before: int
    statements_after: int
    statements_saved: float
    average_before: float
    average_after: float
    connections_before: int
    connections_after: int


@dataclass(frozen=True)
class PoolFigures:
    """A pool while many callers read at once."""

    size: int
    acquisitions: int
    acquisition: Times
    reads: Times
    answered: int
    errors: int
    exhaustions: int
    connection_errors: int


@dataclass(frozen=True)
class Pools:
    """Both ways' pools under `callers` callers at once, and the services' own under as many uncached RPCs."""

    callers: int
    before: PoolFigures
    after: PoolFigures
    rpcs: Times
    rpc_errors: int
    rpc_exhaustions: int
    rpc_connection_errors: int


@dataclass(frozen=True)
class Slow:
    """A statement over the threshold, and whose it was: `before` or `after`."""

    way: str
    query: str
    duration_ms: float


@dataclass(frozen=True)
class Check:
    """One of the seed's targets: the figure that counts, and where it must lie."""

    name: str
    figure: str
    target: str
    seed: str
    ok: bool


@dataclass(frozen=True)
class Run:
    """When, on what and how much was measured."""

    date: str
    postgres: str
    redis: str
    python: str
    cores: int
    scale: int
    rounds: int
    cached: bool
    slow_ms: int
    pool_before: int
    pool_after: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """Everything. `ok` is what `--check` answers, `headline` says it in words."""

    run: Run
    ok: bool
    headline: str
    checks: list[Check]
    rows: list[Row]
    indexes: list[IndexGain]
    plans: list[Plan]
    workload: Workload
    pools: Pools
    buffer_hit_rate: float
    slow_before: int
    slow_after: int
    slow: list[Slow]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return asdict(self)
