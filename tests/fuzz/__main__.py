"""Sends random requests to every RPC of services in separate processes: `python -m tests.fuzz --help`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections import Counter
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path
from typing import Annotated, Any

import psutil
import psycopg
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ops.migrate import migrate
from ops.servers import Postgres, Valkey
from tests.callers import Issuer
from tests.conftest import FAST
from tests.fuzz.callers import settings as caller_settings
from tests.fuzz.driver import Fuzzer, fuzzing, summary
from tests.processes import Processes, processes
from tests.stack import SECRET

PARTS = 100  # of a run; after each, findings are shown and memory is measured
SHOWN = 5  # each so many measurements
# EraseCustomer reads all rows of a salon in these. They are emptied after each part: all requests are for few salons.
EMPTIED = "webhook_failures, messaging_requests, booking_requests, message_status_events"


def main(
    requests: Annotated[int, typer.Option(help="Number of requests.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed of the randomness.")] = 1,
    in_flight: Annotated[int, typer.Option(help="Requests at once.")] = 24,
    callers: Annotated[bool, typer.Option(help="Send them as callers of limited rights.")] = False,
    output: Annotated[Path | None, typer.Option(help="File for the summary, besides the terminal.")] = None,
) -> None:
    """Send random requests to every RPC. Fails if an answer is wrong: INTERNAL, UNKNOWN, too late, unreadable."""
    console = Console(record=True, width=150)
    os.environ["WHATSAPP_APP_SECRET"] = SECRET
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="parlor-fuzz-", ignore_cleanup_errors=True))
        )
        folder.chmod(0o711)  # PostgreSQL may have to run as nobody
        postgres = stack.enter_context(Postgres(folder / "postgres", settings=FAST))
        migrate(postgres.dsn)
        valkey = stack.enter_context(Valkey(options=("--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru")))
        issuer = Issuer() if callers else None
        settings = caller_settings(folder, issuer) if issuer else None
        running = stack.enter_context(processes(postgres.dsn, valkey.url, folder, settings))
        failed = asyncio.run(_run(running, requests, in_flight, console, fuzzing(running, seed, issuer)))
    if output:
        output.write_text(console.export_text())
    raise typer.Exit(int(failed))


async def _run(
    running: Processes, requests: int, in_flight: int, console: Console, fuzzing: AbstractAsyncContextManager[Fuzzer]
) -> bool:
    """Send the requests and print the summary; return whether something is wrong."""
    async with fuzzing as fuzzer:
        memory, began = [_memory(running)], time.monotonic()
        stop_at_signal(fuzzer)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console()) as progress:
            task = progress.add_task("requests", total=requests)
            for _ in range(PARTS):
                shown = len(fuzzer.findings)
                await fuzzer.run(-(-requests // PARTS), in_flight, lambda: progress.advance(task))
                empty(running.database_url)
                memory.append(_memory(running))
                for finding in fuzzer.findings[shown:][:10]:
                    progress.console.print(str(finding), highlight=False, markup=False)
    console.print(_table(fuzzer))
    _show_totals(fuzzer, time.monotonic() - began, memory, console)
    if fuzzer.callers:
        console.print("answered, by caller:", dict(fuzzer.callers.answered))
        console.print("with texts of salons of few:", dict(+fuzzer.callers.marked))
    logged = _logged(running)
    for line in logged[:20]:
        console.print("logged:", line[:1500], highlight=False, markup=False)
    for finding in fuzzer.findings[:50]:
        console.print(str(finding), highlight=False, markup=False)
    return bool(fuzzer.findings or logged)


def stop_at_signal(fuzzer: Fuzzer) -> None:
    """Make Ctrl-C and SIGTERM end the run, whose summary is shown then."""

    def stop() -> None:
        fuzzer.is_stopped = True

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def empty(database_url: str) -> None:
    """Empty some tables, see EMPTIED."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"TRUNCATE {EMPTIED}")


def _memory(running: Processes) -> dict[str, float]:
    """Return the memory of each service in MiB."""
    return {name: psutil.Process(each.pid).memory_info().rss / 2**20 for name, each in running.services.items()}


def _table(fuzzer: Fuzzer) -> Table:
    table = Table("RPC", "requests", "codes", "slowest, ms")
    for name, count, codes, slowest in summary(fuzzer.targets):
        table.add_row(name, str(count), codes, f"{slowest:.0f}")
    return table


def _show_totals(fuzzer: Fuzzer, seconds: float, memory: list[dict[str, float]], console: Console) -> None:
    codes = sum((target.codes for target in fuzzer.targets), Counter[str]())
    console.print(f"{codes.total()} requests to {len(fuzzer.targets)} RPCs in {seconds:.0f} s, seed {fuzzer.seed}")
    console.print(", ".join(f"{code} {count}" for code, count in codes.most_common()))
    slowest = max(fuzzer.targets, key=lambda target: target.slowest)
    console.print(f"slowest: {slowest.name}, {slowest.slowest * 1000:.0f} ms")
    for name in memory[0]:
        series = " ".join(f"{each[name]:.0f}" for each in memory[::SHOWN])
        console.print(f"memory of {name} before and after each {100 * SHOWN // PARTS} %, MiB: {series}")
    console.print(f"findings: {len(fuzzer.findings)}", Counter((each.rpc, each.wrong[:80]) for each in fuzzer.findings))


def _logged(running: Processes) -> list[str]:
    """Return the lines that the services logged as errors, or not as JSON."""
    found = []
    for service in running.services.values():
        for line in service.log.read_text(errors="replace").splitlines():
            try:
                event: Any = json.loads(line)
            except ValueError:
                event = {"level": "error"}
            if event.get("level") in ("error", "critical"):
                found.append(f"{service.name} {line}")
    return found


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
