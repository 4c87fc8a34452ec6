"""`python -m tools.report`: measure the predecessor's report again."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from libs.server import logs
from ops.cli import Scale
from ops.process import StartError
from tools.report.measure import FULL, QUICK, measure
from tools.report.page import BEGIN, END, html, write_markdown


def report(
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Also print one JSON document.")] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Also write the report between the report markers of this file, such as docs/performance.md.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless all targets are met.")] = False,
    scale: Scale = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Make few calls. The figures are rough.")] = False,
) -> None:
    """Measure the predecessor's report again, on a temporary system, and write it as one HTML file.

    Targets of queries: after/before at most 0.25 (bookings), 0.30 (stats) and 0.10 (salon look-ups), by the median time
    on data of 32 callers. The report lists the other targets. Run nothing else on the machine meanwhile.
    """
    if markdown and not re.search(f"{BEGIN}.*{END}", markdown.read_text(), re.DOTALL):
        raise typer.BadParameter(f"{markdown} has no {BEGIN}", param_hint="--markdown")
    logs.configure("error", service="report")
    stderr = Console(stderr=True)
    try:
        with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=stderr) as progress:
            measured = measure(scale, QUICK if quick else FULL, progress)
    except StartError as error:
        stderr.print(f"[red]{error}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(2) from None
    output.write_text(html(measured))
    if markdown:
        write_markdown(measured, markdown)
    if as_json:
        typer.echo(json.dumps(asdict(measured), indent=2))
    for line in measured.checks:
        stderr.print(f"{line.name}: {line.figure}, {line.target}: {'met' if line.ok else 'NOT met'}", highlight=False)
    stderr.print(f"{measured.headline}\nwritten: {output}", highlight=False)
    raise typer.Exit(1 if check and not measured.ok else 0)


if __name__ == "__main__":
    typer.run(report)
