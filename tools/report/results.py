"""The figures of a report, and whether they meet the predecessor's targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.report.reference import BOOKINGS, SALONS, STATS, Line


@dataclass(frozen=True)
class Reads:
    """The time that the reads of a case spend on data, medians in ms: the predecessor's, a first and a repeated read's.

    `hits` are the repeated reads of the last round that the cache answered, in %; `near` those of the near cache.
    """

    before: float
    first: float
    repeated: float
    hits: float
    near: float


@dataclass(frozen=True)
class Row:
    """A line of the predecessor's tables, measured. `after` is the time of the first or of the repeated read, in ms."""

    line: Line
    rpc: str
    reads: Reads
    after: float
    ratio: float
    ok: bool
    verdict: str


def judge(line: Line, rpc: str, reads: Reads) -> Row:
    """Compare the medians of a line with its target, or with the predecessor's own ratio if it has none."""
    after = reads.first if line.first else reads.repeated
    ratio = after / reads.before
    ok = line.target is None or ratio <= line.target
    if line.target is not None:
        verdict = "met" if ok else "NOT met"
    else:
        is_worse = ratio > line.after_ms / line.before_ms
        verdict = "worse than the predecessor's ratio" if is_worse else "no worse than the predecessor's ratio"
    return Row(line, rpc, reads, after, round(ratio, 4), ok, verdict)


@dataclass(frozen=True)
class Check:
    """One of the predecessor's targets, and the figure that is compared with it."""

    name: str
    figure: str
    target: str
    predecessor: str
    ok: bool


def query_checks(rows: Sequence[Row]) -> list[Check]:
    """Judge each kind of query by its worst row. The first call of the statistics, a miss, is judged separately."""
    checks = []
    for name, target, first, predecessor in (
        ("Booking queries", BOOKINGS, False, "100 to 18 ms: 0.18"),
        ("Stats queries", STATS, False, "300 to 5 ms: 0.02"),
        ("Stats queries, first call", STATS, True, "300 to 75 ms: 0.25"),
        ("Salon look-ups", SALONS, False, "50 to 3 ms: 0.06"),
    ):
        of_kind = [row for row in rows if (row.line.target, row.line.first) == (target, first)]
        if of_kind:
            worst = max(of_kind, key=lambda row: row.ratio)
            figure = f"{worst.ratio:.3f} ({worst.line.name})"
            checks.append(Check(name, figure, f"at most {target:.2f}", predecessor, worst.ok))
    return checks


def headline(checks: Sequence[Check]) -> str:
    """Return how many targets are met, and which are not."""
    missed = [check.name for check in checks if not check.ok]
    met = f"{len(checks) - len(missed)} of {len(checks)} targets are met"
    return f"{met}. NOT met: {'; '.join(missed)}." if missed else f"{met}."


@dataclass(frozen=True)
class Report:
    """All figures. `run` is when and on what they were measured, `ok` the result of `--check`."""

    run: dict[str, Any]
    ok: bool
    headline: str
    checks: list[Check]
    rows: list[Row]
