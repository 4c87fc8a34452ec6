"""The command: `python -m tools.coherence --help`."""

import json
import secrets
from typing import Annotated, Literal

import typer
from rich.console import Console

from ops.process import StartError
from ops.up import quiet_end
from tools.coherence.report import tables
from tools.coherence.run import run


def main(
    seconds: Annotated[int, typer.Option(min=1, help="How long to read and write.")] = 60,
    mode: Annotated[
        Literal["refuse", "wait", "bounded"],
        typer.Option(help="REDIS_WITHOUT of the services. `bounded` allows reads that are one REDIS_POLL behind."),
    ] = "wait",
    seed: Annotated[int | None, typer.Option(help="Same seed, same choices.", show_default="a random one")] = None,
    faults: Annotated[bool, typer.Option(help="Inject faults.")] = True,
    only: Annotated[str, typer.Option(help="Inject only faults whose name contains this text.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Exit with 1 if a read shows less than what was acknowledged before it began, or an acknowledged write is lost.

    The system is started for this run: PostgreSQL with a synchronous standby, two Valkeys, two processes of booking,
    messaging and stats. They are killed, paused, flushed, cut off, demoted and promoted meanwhile. A batch counts as as
    many reads as it has keys.
    """
    stderr = Console(stderr=True)
    report = None
    try:
        with quiet_end(stderr):
            chosen = seed if seed is not None else secrets.randbelow(10**6)
            report = run(seconds, mode, chosen, stderr, faults=faults, only=only)
    except StartError as error:
        stderr.print(f"[red]{error}[/red]", soft_wrap=True, highlight=False)
    if report is None:
        raise typer.Exit(1)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        Console(width=max(100, Console().width)).print(tables(report), highlight=False)
    raise typer.Exit(0 if report.ok else 1)


typer.run(main)
