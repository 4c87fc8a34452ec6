"""The report as HTML, with a chart, and as Markdown."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import astuple
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from tools.report.results import Report, Row

TEMPLATES = Path(__file__).parent / "templates"
BEGIN, END = "<!-- report -->", "<!-- /report -->"
BEFORE, AFTER, TARGET = "#b8bfc9", "#0f766e", "#b45309"
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same IDs each time
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # name, heads, rows


def html(report: Report) -> str:
    """Return one HTML document without external references."""
    svg = Markup(chart(report.rows))  # noqa: S704 - drawn by matplotlib, which escapes text
    return _render("report.html.jinja", report, chart=svg)


def write_markdown(report: Report, document: Path) -> None:
    """Replace the text between the markers of a document."""
    marked = f"{BEGIN}\n{_render('report.md.jinja', report)}{END}"
    document.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: marked, document.read_text(), flags=re.DOTALL))


def _render(template: str, report: Report, **more: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    values = {"report": report, "targets": targets(report), "tables": tables(report)}
    return environment.get_template(template).render(**values, **more)


def ms(value: float) -> str:
    """Return a time with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def targets(report: Report) -> Table:
    """Return the table of targets."""
    heads = ("What", "Measured", "Target", "Predecessor", "Verdict")
    return "Targets", heads, [(*astuple(check)[:-1], "met" if check.ok else "NOT met") for check in report.checks]


def tables(report: Report) -> list[Table]:
    """Return the predecessor's tables, measured."""
    heads = ("Query", "Predecessor", "Before", "First", "After", "After / before", "Target", "Verdict")
    return [(name, heads, list(map(_cells, rows))) for name, rows in groupby(report.rows, lambda row: row.line.table)]


def _cells(row: Row) -> tuple[str, ...]:
    line = row.line
    times = (ms(time) for time in (row.reads.before, row.reads.first, row.after))
    target = "-" if line.target is None else f"{line.target:.2f}"
    return line.name, f"{line.before_ms:g} → {line.after_ms:g}", *times, f"{row.ratio:.3f}", target, row.verdict


def chart(rows: Sequence[Row]) -> str:
    """Draw the time on data of each RPC before and after, and its target, as an SVG element."""
    rows = [row for row in rows if row.line.table != "Query cache"]  # repeats other lines
    places = range(len(rows))
    before, after = [row.reads.before for row in rows], [row.after for row in rows]
    marks = [old * (row.line.target or math.nan) for row, old in zip(rows, before, strict=True)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1 + 0.36 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.barh([place - 0.2 for place in places], before, 0.38, color=BEFORE, label="before")
        axes.barh([place + 0.2 for place in places], after, 0.38, color=AFTER, label="after")
        axes.scatter(marks, places, marker="|", s=120, color=TARGET, zorder=3, label="target")
        axes.set_yticks(places, [row.line.name for row in rows])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("median time on data, ms, logarithmic")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", metadata=nothing, transparent=True)
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :].replace("<svg", '<svg role="img" aria-label="Time on data, before and after"', 1)
