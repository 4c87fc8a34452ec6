"""`python -m tools.report`: measure the predecessor's report again."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from ops.cli import Scale
from ops.process import StartError


def report(
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, too.")] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Write it also between the report markers of this file, such as docs/performance.md.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless all targets are met.")] = False,
    scale: Scale = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer calls: a look, not a measurement.")] = False,
    cache: Annotated[bool, typer.Option(help="Without it, --check must notice.")] = True,
) -> None:
    """Measure the seed's report anew, on a system of its own, and write it as one HTML file.

    The targets of queries: after/before at most 0.25 (bookings), 0.30 (stats) and 0.10 (salon look-ups), by the median
    time on data at 32 callers. The report lists the others. The machine should have nothing else to do.
    """
    from tools.report.page import BEGIN, has_markers, html, write_markdown

    if markdown and not has_markers(markdown):
        raise typer.BadParameter(f"{markdown} has no {BEGIN}", param_hint="--markdown")
    from libs.server import logs
    from tools.report.measure import measure
    from tools.report.rows import FULL, QUICK

    logs.configure("error", service="report")
    told = Console(stderr=True)
    try:
        with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=told) as progress:
            measured = measure(scale, QUICK if quick else FULL, progress, cached=cache)
    except StartError as error:
        told.print(f"[red]{error}[/red]", soft_wrap=True, highlight=False)
        raise typer.Exit(2) from None
    output.write_text(html(measured))
    if markdown:
        write_markdown(measured, markdown)
    if as_json:
        typer.echo(json.dumps(measured.as_dict(), indent=2))
    for line in measured.checks:
        told.print(f"{line.name}: {line.figure}, {line.target}: {'met' if line.ok else 'NOT met'}", highlight=False)
    told.print(f"{measured.headline}\nwritten: {output}", highlight=False)
    raise typer.Exit(1 if check and not measured.ok else 0)


if __name__ == "__main__":
    typer.run(report)
