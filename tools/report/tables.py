"""The report's tables as text: its HTML and its Markdown show the same."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tools.report.figures import PoolFigures, Report, Row, Times
from tools.report.seed_figures import SEED

NOTHING = "-"


class Table(NamedTuple):
    """A table: a row's first cell names it; `details` are what the HTML shows below that."""

    name: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    details: Sequence[str] = ()


def ms(value: float) -> str:
    """Return a time with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def quantiles(times: Times) -> str:
    """Return all three."""
    return f"{ms(times.p50)} / {ms(times.p95)} / {ms(times.p99)}"


def met(ok: bool) -> str:
    """Return a verdict."""
    return "met" if ok else "NOT met"


def checks(report: Report) -> Table:
    """Return the targets."""
    heads = ("What", "Measured", "Target", "The seed", "Verdict")
    rows = [
        (
            check.name,
            check.figure,
            check.target,
            check.seed,
            met(check.ok),
        )
        for check in report.checks
    ]
    return Table("targets", heads, rows)


def rows(report: Report) -> list[Table]:
    """Return the seed's tables."""
    heads = ("Query", "The seed", "Before", "First", "After", "Whole RPC", "After / before", "Target", "Verdict")
    tables = []
    for name in dict.fromkeys(row.table for row in report.rows):
        of_table = [row for row in report.rows if row.table == name]
        details = [", ".join(filter(None, (row.rpc, row.index))) for row in of_table]
        tables.append(Table(name, heads, list(map(_row, of_table)), details))
    return tables


def _row(row: Row) -> tuple[str, ...]:
    seed = f"{row.seed_before_ms:g} → {row.seed_after_ms:g}"
    times = (ms(taken.p50) for taken in (row.before, row.at[-1].first, row.after, row.whole))
    return row.name, seed, *times, f"{row.ratio:.3f}", f"{row.target:.2f}" if row.target else NOTHING, row.verdict


def every_quantile(report: Report) -> Table:
    """Return p50, p95 and p99 of each line, at 1 caller and at 32."""
    heads = ("Query", "Callers", "Before", "First", "After", "Whole RPC", "Hits")
    shown = []
    for row in report.rows:
        for at in row.at:
            after, rpc = (at.first, at.rpc_first or at.rpc) if row.first else (at.after, at.rpc)
            hits = NOTHING if row.first else f"{at.hits:.0f} %" + (f", {at.near:.0f} % near" if at.near else "")
            shown.append((row.name, str(at.callers), *map(quantiles, (at.before, at.first, after, rpc)), hits))
    return Table("quantiles", heads, shown)


def indexes(report: Report) -> Table:
    """Return the indexes and their gains."""
    heads = ("Index", "Size, kB", "Scans", "Without", "With", "Gain", "Expected", "Verdict")
    shown = []
    for index in report.indexes:
        expected = NOTHING if index.expected is None else f"{index.expected} %"
        verdict = index.verdict if index.state == "present" else f"{index.verdict}; {index.state}"
        size, taken = f"{index.size_bytes // 1024:,}", (ms(index.without_ms), ms(index.with_ms))
        shown.append((index.name, size, f"{index.scans:,}", *taken, f"{index.gain:.1f} %", expected, verdict))
    return Table("indexes", heads, shown, [f"{index.table} ({index.columns})" for index in report.indexes])


def load(report: Report) -> Table:
    """Return the figures of the workload."""
    work, no = report.workload, NOTHING
    statements, average = (
        (work.statements_before, work.statements_after),
        (work.average_before, work.average_after),
    )
    shown = [
        ("Read statements", *(f"{count:,}" for count in statements), _faster(*statements), f"-{SEED.saved:.1f} %"),
        ("Average time of a read, ms", *map(ms, average), _faster(*average), _change(SEED.average_ms)),
        ("Cache hit rate", no, f"{work.hit_rate:.1f} %", no, f"{SEED.hit_rate:.0f} %"),
        ("Loader not stored, a write being under way", no, f"{work.refused_fills:,}", no, no),
        ("Connections", str(work.connections_before), str(work.connections_after), no, _change(SEED.connections)),
        ("Buffer hit ratio", no, f"{report.buffer_hit_rate:.2f} %", no, f"above {SEED.buffer_hit_rate_target:.0f} %"),
    ]
    return Table("load", ("Metric", "Before", "After", "Change", "The seed"), shown)


def pools(report: Report) -> Table:
    """Return the figures of the pools; the last column is what the services count themselves."""
    figures = report.pools
    both = (figures.before, figures.after)

    def line(name: str, show: Callable[[PoolFigures], str], seed: str, rpcs: str = NOTHING) -> tuple[str, ...]:
        return (name, *map(show, both), seed, rpcs)

    answered = f"{figures.rpcs.calls - figures.rpc_errors:,} of {figures.rpcs.calls:,}"
    failed = [str(figures.rpc_connection_errors), str(figures.rpc_exhaustions)]
    shown = [
        line("Connection acquisition, ms", lambda pool: quantiles(pool.acquisition), _change(SEED.acquisition_ms)),
        line("Connections taken", lambda pool: f"{pool.acquisitions:,}", NOTHING),
        line("A read, ms", lambda pool: quantiles(pool.reads), NOTHING, quantiles(figures.rpcs)),
        line("Calls answered", _answered, f"{_change(SEED.callers)} callers", answered),
        line("Connection errors", lambda pool: str(pool.connection_errors), _change(SEED.connection_errors), failed[0]),
        line("Pool exhaustions", lambda pool: str(pool.exhaustions), _change(SEED.exhaustions), failed[1]),
    ]
    return Table("pools", ("Metric", "Before", "After", "The seed", "RPCs, uncached"), shown)


def _answered(pool: PoolFigures) -> str:
    return f"{pool.answered:,} of {pool.reads.calls:,}"


def _change(pair: tuple[object, object]) -> str:
    return f"{pair[0]} → {pair[1]}"


def _faster(before: float, after: float) -> str:
    return f"{100 * (after - before) / before:+.1f} %"
