"""Load a server process and read its CPU time: `python -m tests.benchmarks.load --help`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from itertools import cycle, islice
from pathlib import Path
from ssl import SSLContext
from typing import Annotated, Any, NamedTuple

import psutil
import typer
import uvloop
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ops.cli import DatabaseUrl
from tests.benchmarks.cases import add_open_salons, cases, path_of, writes
from tests.benchmarks.client import Call, Client, Result, calls_of

BEHIND_SECONDS = 0.03  # longer than the delay of fills
PORTS = {"booking": 50051, "messaging": 50052, "stats": 50053}


class Target(NamedTuple):
    """A server process."""

    port: int
    pid: int

    def cpu_ns(self) -> int:
        """Return the CPU time of all threads, in ns; the figure of the process counts in ticks of 10 ms."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


class Cost(NamedTuple):
    """The server CPU per call of a round, in us, and the round's result."""

    cpu_us: float
    result: Result


class Load:
    """Connections to processes that are measured together; `Call.server` is the index of a process."""

    def __init__(self, client: Client, targets: Sequence[Target]) -> None:
        """Take a client that is connected to them."""
        self.client, self.targets = client, targets

    async def round(self, calls: Iterable[Call], in_flight: int, **options: Any) -> Cost:
        """Send the calls; `options` and errors are those of Client.run.

        Work in the background, such as fills, counts too.
        """
        before = self._cpu_ns()
        result = await self.client.run(calls, in_flight, **options)
        await asyncio.sleep(BEHIND_SECONDS)
        return Cost((self._cpu_ns() - before) / result.calls / 1000, result)

    async def reply(self, call: Call) -> bytes:
        """Return the message of one reply. Raises: CallsFailed."""
        return (await self.client.run([call], keep_replies=True)).replies[0]

    def _cpu_ns(self) -> int:
        return sum(target.cpu_ns() for target in self.targets)


@asynccontextmanager
async def connected(*targets: Target, connections: int = 1, tls: SSLContext | None = None) -> AsyncIterator[Load]:
    """Connect to processes on this machine until the block ends, with or without TLS."""
    with closing(await Client.connect([target.port for target in targets], connections, tls)) as client:
        yield Load(client, targets)


def requests_of(database_url: str, method: str, app_secret: str, most: int) -> tuple[str, list[bytes]]:
    """Return the path of a method, and requests for the data; of writes `most` requests, each valid once.

    Raises: BadParameter, which names the existing methods.
    """
    made = {case.method: case for case in cases(database_url)}
    if case := made.get(method):
        return case.path, case.requests
    if method == "CreateBooking":
        add_open_salons(database_url)
        return path_of("booking", method), list(islice(writes(database_url, app_secret).bookings, most))
    if method == "IngestWebhook":
        return path_of("messaging", method), list(islice(writes(database_url, app_secret).webhooks, most))
    raise typer.BadParameter(f"{method} is none of {', '.join([*made, 'CreateBooking', 'IngestWebhook'])}")


def listening(port: int) -> list[Target]:
    """Return the processes that listen on a port. Raises: BadParameter if there is none."""
    found = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    }
    if targets := [Target(port, pid) for pid in found if pid]:
        return targets
    raise typer.BadParameter(f"no process of yours listens on port {port}")


async def load(targets: Sequence[Target], calls: Iterable[Call], plan: Plan, progress: Progress) -> Cost:
    """Run a plan against the processes of one port, and show the progress."""
    with closing(await Client.connect([targets[0].port], plan.connections)) as client:
        if plan.warm:
            await client.run(plan.warm, plan.in_flight, check=False)
        task = progress.add_task("calls", total=None)

        async def show() -> None:
            while True:
                progress.update(task, completed=client.result.calls)
                await asyncio.sleep(0.2)

        showing = asyncio.create_task(show())
        try:
            return await Load(client, targets).round(calls, plan.in_flight, seconds=plan.seconds, check=False)
        finally:
            showing.cancel()


class Plan(NamedTuple):
    """A load; `warm` are calls to make first."""

    in_flight: int
    connections: int
    seconds: float
    warm: Sequence[Call]


def figures(cost: Cost) -> dict[str, Any]:
    """Return the figures by name."""
    result = cost.result
    return {
        "calls": result.calls,
        "errors": result.errors,
        "calls_per_second": round(result.rate),
        "p50_us": round(result.percentile_us(0.5)),
        "p99_us": round(result.percentile_us(0.99)),
        "server_cpu_us_per_call": round(cost.cpu_us, 1),
        "statuses": dict(result.statuses),
        "x_cache": dict(result.sources),
        "first_error": result.first_error,
    }


def main(
    method: Annotated[str, typer.Argument(help="A read RPC, such as GetBookingByCode; CreateBooking; IngestWebhook.")],
    database_url: DatabaseUrl,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port on this machine.", show_default="that of `parlor up`")
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, max=1000, help="Concurrent calls.")] = 32,
    connections: Annotated[int, typer.Option(min=1, max=100, help="Connections for the calls.")] = 1,
    calls: Annotated[int, typer.Option(min=1, max=10_000_000, help="Maximum number of calls.")] = 100_000,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Maximum duration in seconds.")] = 10,
    cache_control: Annotated[str, typer.Option(help="Sent with each call: no-cache, or max-age=SECONDS.")] = "",
    warm: Annotated[bool, typer.Option(help="Make each different read once first.")] = True,
    app_secret: Annotated[
        str, typer.Option(envvar="WHATSAPP_APP_SECRET", help="Secret for signing webhook bodies.")
    ] = "parlor-dev",  # noqa: S107 - that of `parlor up`
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Load a method of a service on this machine, and measure: calls per second, latencies, the service's CPU per call.

    The requests are different ones, made from the service's sample data; the writes change that data. CreateBooking
    books in salons that are added, bench-open-1 and so on. Calls that fail are counted by status, and the exit code is
    1.
    """
    path, requests = requests_of(database_url, method, app_secret, calls)
    service = path.split(".")[1]
    made = calls_of(path, requests, (("cache-control", cache_control),) if cache_control else ())
    is_read = path.rpartition("/")[2] not in ("CreateBooking", "IngestWebhook")
    plan = Plan(in_flight, connections, seconds, made if warm and is_read else ())
    columns = (TextColumn("{task.completed} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        targets = listening(port or PORTS[service])
        try:
            cost = uvloop.run(load(targets, islice(cycle(made), calls), plan, progress))
        except (OSError, TimeoutError) as error:
            raise SystemExit(f"the load ended early: {error or type(error).__name__}") from error
    show(figures(cost), as_json)
    raise typer.Exit(min(cost.result.errors, 1))


def show(measured: dict[str, Any], as_json: bool) -> None:
    """Print the figures."""
    if as_json:
        print(json.dumps(measured))
        return
    table = Table(show_header=False)
    for name, value in measured.items():
        if value or value == 0:
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
