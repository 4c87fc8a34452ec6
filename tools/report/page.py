"""The report as HTML and as Markdown."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from tools.report import tables
from tools.report.charts import charts
from tools.report.figures import Report

TEMPLATES = Path(__file__).parent / "templates"
BEGIN, END = "<!-- report -->", "<!-- /report -->"


def html(report: Report) -> str:
    """Return one HTML document that refers to nothing outside itself."""
    drawn = {name: Markup(svg) for name, svg in charts(report).items()}  # noqa: S704 - ours, and autoescaped text in it
    return _render("report.html.jinja", report, charts=drawn)


def markdown(report: Report) -> str:
    """Return the section of docs/performance.md."""
    return _render("report.md.jinja", report)


def has_markers(document: Path) -> bool:
    """Return whether a document has a place for the section."""
    text = document.read_text()
    return BEGIN in text and END in text


def write_markdown(report: Report, document: Path) -> None:
    """Put the section between the markers of a document."""
    text = document.read_text()
    marked = f"{BEGIN}\n{markdown(report)}{END}"
    document.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: marked, text, flags=re.DOTALL))


def _render(template: str, report: Report, **more: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["ms"] = tables.ms
    return environment.get_template(template).render(report=report, tables=tables, **more)
