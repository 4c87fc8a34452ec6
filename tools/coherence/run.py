"""A run: start the system and its load, let faults happen, and report what was found."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ops.process import StartError
from ops.up import Plan, data_folder
from tools.coherence.client import TIMEOUT_SECONDS, chair, phone, run_client
from tools.coherence.faults import POSTGRES, Faults
from tools.coherence.reader import Reader
from tools.coherence.report import Report
from tools.coherence.state import ITEMS, PROCESSES, READERS, WRITERS, State
from tools.coherence.system import System, running
from tools.coherence.writer import Writer

READY_SECONDS = 60
END_SECONDS = 4 * TIMEOUT_SECONDS
TICK_SECONDS = 0.2
# By salon and name; see `lost`.
VERSIONS = """
    WITH line AS (
        SELECT salon_id, 'services' AS line, name::int AS number FROM services WHERE service_id <> 'cut'
        UNION ALL SELECT salon_id, 'time off', reason::int FROM time_off
        UNION ALL SELECT salon_id, 'resources', name::int FROM resources
        WHERE resource_id LIKE 'extra-%' AND deleted_at IS NULL
    )
    SELECT salon_id, 'name', name::int FROM salons
    UNION ALL SELECT salon_id, 'service', name::int FROM services WHERE service_id = 'cut'
    UNION ALL SELECT salon_id, resource_id, name::int FROM resources WHERE resource_id LIKE 'chair-%'
    UNION ALL SELECT salon_id, line || ' created', max(number) FROM line GROUP BY salon_id, line
    UNION ALL SELECT salon_id, line || ' deleted', min(number) - 1 FROM line GROUP BY salon_id, line
    UNION ALL SELECT salon_id, booking_code, revision FROM bookings
    UNION ALL SELECT salon_id, 'notes ' || customer_phone, notes::int FROM bookings WHERE notes <> ''
    UNION ALL SELECT salon_id, 'opt-out ' || identity, opt_out_reason::int
        FROM customers JOIN customer_identities USING (salon_id, customer_id)
        WHERE opt_out_reason <> '' AND kind = 'PHONE_NUMBER'
    UNION ALL SELECT n.salon_id, 'user IDs ' || n.identity, count(*)
        FROM customer_identities AS n JOIN customer_identities AS u USING (salon_id, customer_id)
        WHERE n.kind = 'PHONE_NUMBER' AND u.kind = 'USER_ID' GROUP BY n.salon_id, n.identity
    UNION ALL SELECT salon_id, 'assignee ' || phone_number, assignee::int FROM conversations WHERE assignee <> ''
    UNION ALL SELECT salon_id, phone_number, max(content::int) FROM messages GROUP BY salon_id, phone_number
    UNION ALL SELECT salon_id, 'sent ' || phone_number, max(substring(whatsapp_id FROM '[0-9]+$')::int) FROM messages
        WHERE direction = 'OUTBOUND' AND whatsapp_id <> '' GROUP BY salon_id, phone_number"""
COUNTED = ("status changes", "bookings moved")  # not to be found in one row

Clients = list["Future[list[dict[str, Any]]]"]


def run(seconds: float, mode: str, seed: int, console: Console, *, faults: bool = True, only: str = "") -> Report:
    """Run for so long, and report. Raises: StartError if something does not start, or ends by itself."""
    report = Report(mode, seed, seconds)
    plan = Plan(Path(), None, ephemeral=True, scale=None, ports={}, metrics_port=0)
    with ExitStack() as stack:
        folder = stack.enter_context(data_folder(plan))
        console.print(f"starting: mode {mode}, seed {seed}", highlight=False)
        system = stack.enter_context(running(folder, mode))
        state = State(folder / "state")
        spec = system.spec(folder / "state", mode, seed, int(time.time()))
        pool = stack.enter_context(ProcessPoolExecutor(PROCESSES, get_context("spawn")))
        stack.callback(state.end)
        kinds: list[Any] = [Writer] * WRITERS + [Reader] * READERS
        clients: Clients = [pool.submit(run_client, kind, spec, number) for number, kind in enumerate(kinds)]
        until_ready(state, clients)
        columns = (BarColumn(16), TextColumn("{task.completed:.0f} of {task.total:.0f} s, {task.description}"))
        with Progress(*columns, console=console) as progress:
            watch(report, state, system, clients, Faults(system, seed, mode, only) if faults else None, progress)
        state.end()
        for client in clients:
            report.findings += client.result(END_SECONDS)
        report.lost += lost(system.postgres.primary.dsn, state)
        report.finish(state)
    return report


def until_ready(state: State, clients: Clients) -> None:
    """Wait until the first writes are done and the readers have begun. Raises: StartError."""
    deadline = time.monotonic() + READY_SECONDS
    while state.total("ready") < PROCESSES:
        check(clients)
        if time.monotonic() > deadline:
            raise StartError("the first writes and reads took more than a minute")
        time.sleep(TICK_SECONDS)


def check(clients: Clients) -> None:
    """Raise StartError if a client process has ended."""
    for client in clients:
        if client.done():
            raise StartError(f"a client process ended: {client.exception()!r}")


def watch(
    report: Report, state: State, system: System, clients: Clients, faults: Faults | None, progress: Progress
) -> None:
    """Let faults happen until the time is over; after each of Postgres look for lost writes."""
    task = progress.add_task("", total=report.seconds)
    began = time.monotonic()
    next_fault = faults.calm() if faults else report.seconds
    while (passed := time.monotonic() - began) < report.seconds:
        counts = f"{state.total('reads'):,} reads, {state.total('acknowledged'):,} writes, {len(report.faults)} faults"
        text = f"{counts}, {state.total('stale'):,} stale, {len(report.lost)} lost"
        progress.update(task, completed=passed, description=text)
        check(clients)
        if faults and passed >= next_fault:
            what = faults.happen()
            report.faults.append((round(passed, 1), what))
            progress.console.print(f"{passed:6.1f} s  {what}", highlight=False)
            if what.startswith(POSTGRES):
                report.lost += lost(system.postgres.primary.dsn, state)
            next_fault = time.monotonic() - began + faults.calm()
        time.sleep(TICK_SECONDS)
    progress.update(task, completed=report.seconds)
    report.seconds = round(passed, 1)


def lost(dsn: str, state: State) -> list[str]:
    """Return the acknowledged writes that the database does not have."""
    acknowledged = [state.acknowledged(item) for item in range(len(ITEMS))]
    names: dict[str | int, Callable[..., str]] = {
        "message": lambda item, customer: phone(customer),
        "sent": lambda item, customer: f"sent {phone(customer)}",
        "assignee": lambda item, customer: f"assignee {phone(customer)}",
        "opt-out": lambda item, customer: f"opt-out {phone(customer)}",
        "user IDs": lambda item, customer: f"user IDs {phone(customer)}",
        "resource": lambda item, customer: chair(customer),
        "notes": lambda item, customer: f"notes {phone(customer)}",
        "booking": lambda item, *_: state.code(item),  # "" until the writer has noted it
    }
    expected = {
        item: (f"salon-{salon}", names[kind](item, *place) if kind in names else str(kind))
        for item, (kind, salon, *place) in enumerate(ITEMS)
        if kind not in COUNTED and acknowledged[item]
    }
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(VERSIONS).fetchall()
    versions = {(salon, name): version for salon, name, version in rows}
    return [
        f"{ITEMS[item]}: {acknowledged[item]} was acknowledged, {versions.get(name, 0)} is in the database"
        for item, name in expected.items()
        if name[1] and versions.get(name, 0) < acknowledged[item]
    ]
