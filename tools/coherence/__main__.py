"""The command line of `make coherence`."""

import secrets
from typing import Annotated, Literal

import typer
from rich.console import Console

from ops.process import StartError
from ops.up import quiet_end
from tools.coherence.run import run


def coherence(
    seconds: Annotated[int, typer.Option(min=1, help="How long to read and write.")] = 60,
    mode: Annotated[
        Literal["refuse", "wait", "bounded"],
        typer.Option(help="REDIS_WITHOUT of the services; with `bounded` replies may be 1 s behind."),
    ] = "wait",
    seed: Annotated[int | None, typer.Option(help="Same seed, same choices.", show_default="a random one")] = None,
    faults: Annotated[bool, typer.Option(help="Kill, pause, hang, cut off, promote and demote servers.")] = True,
    only: Annotated[str, typer.Option(help="Only faults whose name contains this text.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Exit with 1 if a read shows less than what was acknowledged before it began, or an acknowledged write is lost.

    Starts a system in a temporary folder, with writers and readers. A reply is one read, a batch one for each key.
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
        typer.echo(report.as_json())
    else:
        console = Console()
        Console(width=max(100, console.width)).print(report.tables(), highlight=False)
    raise typer.Exit(0 if report.ok else 1)


if __name__ == "__main__":
    typer.run(coherence)
