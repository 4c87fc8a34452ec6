"""A run: start the system, its writers and readers, let faults happen, and say what was found."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from ops.process import StartError, spawn
from ops.up import Plan, data_folder
from tools.coherence import ledger as facts
from tools.coherence.client import TIMEOUT_SECONDS, Spec, phone, salon_id
from tools.coherence.faults import Faults
from tools.coherence.ledger import COUNTS, CUSTOMERS, PROCESSES, RPCS, SALONS, WRITERS, Ledger
from tools.coherence.report import Report
from tools.coherence.system import System, running

READY_SECONDS = 60
END_SECONDS = 4 * TIMEOUT_SECONDS
TICK_SECONDS = 0.2


class Client(NamedTuple):
    """A process of writers or readers."""

    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """Return the end of what it printed."""
        return self.log.read_text()[-5000:]


class Live(ProgressColumn):
    """The counts so far."""

    def __init__(self, ledger: Ledger, report: Report) -> None:
        """Take what counts."""
        super().__init__(Column(no_wrap=True))
        self._board = ledger
        self._report = report

    def render(self, task: Task) -> Text:
        """Return the counts as they are now."""
        total = self._board.total
        return Text(
            f"{total('reads'):,} reads, {total('acknowledged'):,} writes, {len(self._report.faults)} faults,"
            f" {total('stale'):,} stale"
        )


def run(seconds: float, mode: str, seed: int, console: Console, *, faults: bool = True, only: str = "") -> Report:
    """Run for so long, and report. Raises: StartError if something does not start, or ends by itself."""
    report = Report(mode, seed, seconds)
    plan = Plan(Path(), None, ephemeral=True, scale=None, ports={}, metrics_port=0)
    with ExitStack() as stack:
        folder = stack.enter_context(data_folder(plan))
        console.print(f"starting: mode {mode}, seed {seed}", highlight=False)
        system = stack.enter_context(running(folder, mode))
        ledger = Ledger(folder / "ledger")
        chaos = Faults(system, seed, strict=mode != "bounded", only=only) if faults else None
        spec = system.spec(folder / "ledger", mode, seed, int(time.time()))
        with clients(spec, folder) as started:
            until_ready(ledger, started)
            columns = (BarColumn(16), TextColumn("{task.completed:.0f} of {task.total:.0f} s"), Live(ledger, report))
            with Progress(*columns, console=console) as progress:
                watch(report, ledger, system, chaos, progress, started)
            ledger.end()
            for client in started:
                until_ended(client)
        report.lost += lost(system.postgres.dsn, ledger)
        report.rpcs = {rpc: {what: ledger.counted(rpc, what) for what in COUNTS} for rpc in RPCS}
        report.acknowledged, report.retried = ledger.total("acknowledged"), ledger.total("retried")
        report.unexpected = ledger.total("unexpected")
        report.findings = list(findings(folder))
    return report


@contextmanager
def clients(spec: Spec, folder: Path) -> Iterator[list[Client]]:
    """Run writers and readers for the block; in the end they are killed if they have not ended."""
    started = []
    for number in range(PROCESSES):
        kind = "writer" if number < WRITERS else "reader"
        log = folder / f"log/clients-{number}.log"
        command = [sys.executable, "-X", "faulthandler", "-m", f"tools.coherence.{kind}", str(number), str(spec)]
        started.append(Client(spawn(command, log, signal.SIGTERM), log))
    try:
        yield started
    finally:
        for client in started:
            client.process.kill()
            client.process.wait()


def until_ready(ledger: Ledger, clients: list[Client]) -> None:
    """Wait until the writers have made what is read, and the readers have begun. Raises: StartError."""
    deadline = time.monotonic() + READY_SECONDS
    while ledger.total("ready") < len(clients):
        check(clients)
        if time.monotonic() > deadline:
            raise StartError("the first writes and reads took more than a minute")
        time.sleep(TICK_SECONDS)


def check(clients: list[Client]) -> None:
    """Raise StartError if a process has ended."""
    for client in clients:
        if client.process.poll() is not None:
            raise StartError(f"a client ended by itself: {client.last_words()}")


def until_ended(client: Client) -> None:
    """Wait until a process has ended. Raises: StartError, with where it stood, if it does not."""
    try:
        client.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        client.process.send_signal(signal.SIGABRT)
        client.process.wait()
        raise StartError(f"a client did not end: {client.last_words()}") from None


def watch(
    report: Report,
    ledger: Ledger,
    system: System,
    faults: Faults | None,
    progress: Progress,
    clients: list[Client],
) -> None:
    """Let faults happen until the time is over. After each crash of PostgreSQL look for lost writes."""
    task = progress.add_task("", total=report.seconds)
    began = time.monotonic()
    next_fault = faults.calm() if faults else report.seconds
    while (passed := time.monotonic() - began) < report.seconds:
        progress.update(task, completed=passed)
        check(clients)
        if faults and passed >= next_fault:
            what = faults.inject()
            report.faults.append((passed, what))
            progress.console.print(f"{passed:6.1f} s  {what}", highlight=False)
            if what.startswith("PostgreSQL"):
                report.lost += lost(system.postgres.dsn, ledger)
            next_fault = time.monotonic() - began + faults.calm()
        time.sleep(TICK_SECONDS)
    progress.update(task, completed=report.seconds)
    report.seconds = passed


def lost(dsn: str, ledger: Ledger) -> list[str]:
    """Return the acknowledged writes that the database does not have."""
    acknowledged = [ledger.acknowledged(fact) for fact in range(facts.FACTS)]
    with psycopg.connect(dsn) as conn:
        salons = conn.execute("SELECT salon_id, name::int FROM salons").fetchall()
        bookings = conn.execute("SELECT salon_id, booking_code, revision FROM bookings").fetchall()
        messages = conn.execute(
            "SELECT salon_id, phone_number, max(content::int) FROM messages GROUP BY salon_id, phone_number"
        ).fetchall()
    values = {row[:-1]: row[-1] for row in (*salons, *bookings, *messages)}
    there: dict[int, int] = {}
    for salon, of_salon in enumerate(map(salon_id, range(SALONS))):
        there[facts.name(salon)] = values.get((of_salon,), 0)
        for customer in range(CUSTOMERS):
            there[facts.messages(salon, customer)] = values.get((of_salon, phone(customer)), 0)
        for fact in ledger.coded(facts.bookings(salon, *range(CUSTOMERS))):
            there[fact] = values.get((of_salon, ledger.code(fact)), 0)
    return [
        f"{facts.describe(fact)}: {acknowledged[fact]} was acknowledged, {value} is there"
        for fact, value in there.items()
        if value < acknowledged[fact]
    ]


def findings(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what the processes printed."""
    for log in sorted(folder.glob("log/clients-*.log")):
        for line in log.read_text().splitlines():
            if line.startswith("{"):
                yield json.loads(line)
