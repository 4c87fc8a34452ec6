"""The report's charts, as SVG that stands in the HTML: its text is text, and it refers to nothing outside."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tools.report.figures import IndexGain, Pools, Report, Row

BEFORE, AFTER, TARGET = "#b8bfc9", "#0f766e", "#b45309"
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
WIDTH, LINE, FRAME = 7.2, 0.36, 1.0  # inches: of a chart, of a line of it, of what stands above and below


def charts(report: Report) -> dict[str, str]:
    """Return the charts by name."""
    with matplotlib.rc_context(STYLE):
        return {
            "rows": _rows(report.rows),
            "indexes": _indexes([index for index in report.indexes if index.expected is not None]),
            "pools": _pools(report.pools),
        }


def _rows(rows: Sequence[Row]) -> str:
    """Draw the time on data of each row, before and after, on a logarithmic scale, and where its target lies."""
    shown = [row for row in rows if row.table != "Query cache"]
    shown += [row for row in rows if row.table == "Query cache" and row.rpc not in {other.rpc for other in shown}]
    figure, axes = _bars([row.name for row in shown])
    _pair(axes, [row.before.p50 for row in shown], [row.after.p50 for row in shown])
    aims = [(place, row.before.p50 * row.target) for place, row in enumerate(shown) if row.target]
    axes.scatter(
        [aim for _, aim in aims], [place + 0.2 for place, _ in aims], marker="|", s=120, color=TARGET, zorder=3
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("ms, median at 32 callers, logarithmic; the mark is the target")
    return _svg(figure, "rows", "Time on data of each query, before and after")


def _indexes(indexes: Sequence[IndexGain]) -> str:
    """Draw the measured gain of each index beside the expected one."""
    figure, axes = _bars([index.name for index in indexes])
    _pair(
        axes, [index.expected or 0 for index in indexes], [max(index.gain, 0) for index in indexes], "the seed expects"
    )
    axes.set_xlim(0, 100)
    axes.set_xlabel("time saved by the index, %")
    return _svg(figure, "indexes", "Gain of each index, expected and measured")


def _pools(pools: Pools) -> str:
    """Draw how long callers waited for a connection."""
    names = ("p50", "p95", "p99")
    old, new = ([getattr(pool.acquisition, name) for name in names] for pool in (pools.before, pools.after))
    figure, axes = _bars(names)
    _pair(axes, old, new)
    axes.set_xlabel(f"wait for a connection, ms, {pools.callers} callers at once")
    return _svg(figure, "pools", "Waits for a connection, before and after")


def _bars(names: Sequence[str]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, FRAME + LINE * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e5e7eb")
    return figure, axes


def _pair(axes: Any, before: Sequence[float], after: Sequence[float], first: str = "before") -> None:
    places = range(len(before))
    axes.barh([place - 0.2 for place in places], before, 0.38, color=BEFORE, label=first)
    axes.barh(
        [place + 0.2 for place in places], after, 0.38, color=AFTER, label="after" if first == "before" else "measured"
    )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0)


def _svg(figure: Figure, name: str, title: str) -> str:
    """Return the bare element; `name` keeps the ids of several in one page apart, `title` is for who can't see it."""
    drawn = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.id": name}):
        figure.savefig(drawn, format="svg", metadata=nothing, transparent=True)
    text = drawn.getvalue()
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
