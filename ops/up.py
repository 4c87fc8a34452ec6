"""`parlor up`: the whole system as children of one process, which end with it."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psycopg
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from libs.db.settings import DatabaseSettings, split_pool_parameters
from libs.server.settings import explain
from ops.dev_certs import settings as identity_settings
from ops.health import credentials, is_serving
from ops.migrate import migrate, passwords, service_url
from ops.process import Server, StartError, is_free, spawn
from ops.sample_data import load_sample_data
from ops.servers import Postgres, Valkey
from ops.standby import Standby

SERVICES = {
    "booking": "parlor.booking.v1.BookingService",
    "messaging": "parlor.messaging.v1.MessagingService",
    "stats": "parlor.stats.v1.StatsService",
}
SPARE_CONNECTIONS = 20
CALLER = {"cacert": "ca.pem", "cert": "dashboard.pem", "key": "dashboard.key"}  # with TLS, who calls
VALKEY_OPTIONS = ("--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru")
CALLS = (
    ("booking", "ListSalons", '{"page_size": 2}'),
    ("messaging", "ListConversations", '{"salon_id": "salon-123", "page_size": 2}'),
    (
        "stats",
        "GetSalonStats",
        '{"salon_id": "salon-123", "start_time": "2025-01-01T00:00:00Z", "end_time": "2025-02-01T00:00:00Z"}',
    ),
)


@dataclass(frozen=True)
class Plan:
    """The options of `parlor up`; a scale of None writes no data. Without `certs` there is no TLS and no `policy`."""

    data: Path
    pg_bin: Path | None
    ephemeral: bool
    scale: int | None
    ports: dict[str, int]
    metrics_port: int
    workers: int = 1
    ops_port: int | None = None
    certs: Path | None = None
    policy: Path = Path()
    replica: bool = False


class Service(Server):
    """One of the three services, in a separate process."""

    def __init__(self, name: str, port: int, log: Path, environment: dict[str, str], certs: Path | None = None) -> None:
        """Don't start it yet. With the folder `certs` it speaks TLS."""
        super().__init__(name, port, log)
        self.environment = environment
        self._credentials = credentials(*(certs / file for file in CALLER.values())) if certs else None

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the service with this Python."""
        command = [sys.executable, "-m", f"services.{self.name}"]
        return spawn(command, self.log, self.stop_signal, environment=self.environment)

    def is_ready(self) -> bool:
        """Return whether it is SERVING."""
        return is_serving(f"127.0.0.1:{self.port}", SERVICES[self.name], timeout=1.0, credentials=self._credentials)


class Stopped(Exception):
    """A signal asks `parlor up` to stop."""


def run(plan: Plan, console: Console) -> None:
    """Start everything, show how to call it, and wait until a signal has stopped it.

    Raises: StartError if a server cannot start or ends by itself. Nothing is left running then.
    """
    with ExitStack() as stack:
        stack.enter_context(quiet_end(console))
        data = stack.enter_context(data_folder(plan))
        check_ports(plan)
        began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            servers = start(plan, data, stack, progress)
        show(plan, servers, data, console, time.monotonic() - began)
        watch(servers)


@contextmanager
def quiet_end(console: Console) -> Iterator[None]:
    """Make the first SIGINT, SIGTERM or SIGHUP end the block cleanly; later ones are ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        console.print("\nstopping", highlight=False)
        raise Stopped

    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signals.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    except Stopped:
        console.print("stopped", highlight=False)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def data_folder(plan: Plan) -> Iterator[Path]:
    """Lock the data folder for this process; a temporary one is removed at the end."""
    with ExitStack() as stack:
        folder = plan.data.absolute()
        if plan.ephemeral:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="parlor-", ignore_cleanup_errors=True))
            )
            folder.chmod(0o711)  # PostgreSQL may have to run as nobody
        folder.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((folder / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another `parlor up` uses {folder}; give this one a folder with --data") from None
        yield folder


def check_ports(plan: Plan) -> None:
    """Raise StartError, which names each port in use, before anything is started."""
    metrics = {f"{name}'s metrics": plan.metrics_port + offset for offset, name in enumerate(SERVICES)}
    if plan.ops_port is not None:
        metrics |= {f"{name}'s OpsService": plan.ops_port + offset for offset, name in enumerate(SERVICES)}
    taken = [f"port {port} ({name}) is in use" for name, port in (plan.ports | metrics).items() if not is_free(port)]
    if taken:
        raise StartError("\n".join([*taken, "`parlor up --help` shows how to choose others"]))


def start(plan: Plan, data: Path, stack: ExitStack, progress: Progress) -> list[Server]:
    """Start the servers, migrate, load the sample data and start the services, in this order. The stack stops them."""
    steps = progress.add_task("PostgreSQL and Valkey", total=4)
    database_url = services_url = os.environ.get("DATABASE_URL", "")
    redis_url = os.environ.get("REDIS_URL", "")
    servers: list[Server] = []
    logins: dict[str, str] = {}
    if not database_url:
        settings = {"max_connections": str(connections(plan.workers)), "log_error_verbosity": "terse"}  # without values
        log = data / "log/postgres.log"
        postgres = Postgres(data / "postgres", pg_bin=plan.pg_bin, settings=settings, log=log, secured=True)
        servers.append(stack.enter_context(postgres))
        database_url, services_url, logins = postgres.dsn, postgres.local_dsn, postgres.passwords
    if not redis_url:
        valkey = Valkey(data=data / "valkey", log=data / "log/valkey.log", options=VALKEY_OPTIONS)
        servers.append(stack.enter_context(valkey))
        redis_url = valkey.local_url
    progress.update(steps, advance=1, description="schema")
    migrate(database_url, logins | passwords(os.environ))
    progress.update(steps, advance=1, description="data")
    if plan.scale and is_empty(database_url):
        load_sample_data(database_url, plan.scale, progress=progress, redis_url=redis_url)
    replica_url = ""
    if plan.replica:
        progress.update(steps, description="replica")
        standby = start_standby(servers, data, stack)
        servers.append(standby)
        replica_url = standby.local_dsn
    progress.update(steps, advance=1, description="services")
    services = start_services(environments(plan, services_url, redis_url, replica_url), plan, data, stack)
    progress.update(steps, advance=1, description="started")
    return [*servers, *services]


def start_standby(servers: list[Server], data: Path, stack: ExitStack) -> Standby:
    """Start a standby of the embedded Postgres, made anew. Raises: StartError."""
    primary = next((server for server in servers if isinstance(server, Postgres)), None)
    if primary is None:
        raise StartError("--replica needs the embedded PostgreSQL; unset DATABASE_URL, or set *_REPLICA_URL yourself")
    settings = {"max_connections": primary.settings["max_connections"]}  # at least those of the primary
    standby = Standby(data / "standby", primary, settings, log=data / "log/standby.log")
    standby.remove()
    return stack.enter_context(standby)


def connections(workers: int) -> int:
    """Return max_connections of the embedded Postgres: all that the services may open, and some for operators."""
    try:
        limit = DatabaseSettings(url=SecretStr("")).connection_limit
    except ValueError as error:
        raise StartError(explain(error)) from None
    with_probe = limit + 1
    return max(200, len(SERVICES) * workers * with_probe + SPARE_CONNECTIONS)


def is_empty(database_url: str) -> bool:
    """Return whether there are no salons yet."""
    with psycopg.connect(split_pool_parameters(database_url)[0]) as connection:
        return connection.execute("SELECT FROM salons LIMIT 1").rowcount == 0


def environments(plan: Plan, database_url: str, redis_url: str, replica_url: str = "") -> dict[str, dict[str, str]]:
    """Return the environment of each service, in addition to that of this process."""
    shared = {
        "HOST": "127.0.0.1",
        "REDIS_URL": redis_url,
        "WORKERS": str(plan.workers),
        "BOOKING_ADDRESS": f"127.0.0.1:{plan.ports['booking']}",
        "WHATSAPP_APP_SECRET": os.environ.get("WHATSAPP_APP_SECRET") or "parlor-dev",
    }
    if plan.certs:
        shared |= identity_settings(plan.certs, plan.policy)
    for name in SERVICES:
        variable = f"{name.upper()}_DATABASE_URL"
        shared[variable] = os.environ.get(variable) or service_url(database_url, f"parlor_{name}")
        if replica_url:
            shared[f"{name.upper()}_REPLICA_URL"] = service_url(replica_url, f"parlor_{name}")
    return {name: shared | _own_ports(plan, name, offset) for offset, name in enumerate(SERVICES)}


def _own_ports(plan: Plan, name: str, offset: int) -> dict[str, str]:
    ports = {"PORT": str(plan.ports[name]), "METRICS_PORT": str(plan.metrics_port + offset)}
    return ports if plan.ops_port is None else ports | {"OPS_PORT": str(plan.ops_port + offset)}


def start_services(environments: dict[str, dict[str, str]], plan: Plan, data: Path, stack: ExitStack) -> list[Service]:
    """Start the services concurrently; the stack stops them concurrently."""
    services = [
        Service(name, plan.ports[name], data / f"log/{name}.log", own, plan.certs) for name, own in environments.items()
    ]
    for service in services:
        stack.callback(service.stop)
    for service in services:
        stack.callback(service.terminate)
    for service in services:
        service.launch()
    for service in services:
        service.wait()
    return services


def show(plan: Plan, servers: list[Server], data: Path, console: Console, seconds: float) -> None:
    """Print the addresses, and calls to try."""
    table = Table("SERVING", "gRPC", "OpsService", "metrics", title=f"Parlor, after {seconds:.1f} s")
    for offset, name in enumerate(SERVICES):
        metrics = f"127.0.0.1:{plan.metrics_port + offset}/metrics"
        ops = "" if plan.ops_port is None else f"127.0.0.1:{plan.ops_port + offset}"
        table.add_row(f"[green]{name}[/green]", f"127.0.0.1:{plan.ports[name]}", ops, metrics)
    console.print(table)
    lines = [f"{server.name}: {server.dsn}" for server in servers if isinstance(server, Postgres)]
    lines += [f"{server.name}: {server.url}" for server in servers if isinstance(server, Valkey)]
    lines += [f"logs: {data / 'log'}", "", "Try, with grpcurl or with buf:"]
    grpcurl, buf, scheme = flags(plan.certs)
    for name, method, request in CALLS:
        path = f"{SERVICES[name]}/{method}"
        lines.append(f"grpcurl {grpcurl} -d '{request}' 127.0.0.1:{plan.ports[name]} {path}")
        lines.append(f"buf curl {buf} --protocol grpc -d '{request}' {scheme}://127.0.0.1:{plan.ports[name]}/{path}")
    console.print("\n".join(lines), "", "Ctrl-C stops it all.", sep="\n", soft_wrap=True, highlight=False, markup=False)


def flags(certs: Path | None) -> tuple[str, str, str]:
    """Return how to connect: options of grpcurl, options of buf, and the scheme of URLs."""
    if certs is None:
        return "-plaintext", "--http2-prior-knowledge", "http"
    options = [f"{name} {certs / file}" for name, file in CALLER.items()]
    return "-" + " -".join(options), "--" + " --".join(options), "https"


def watch(servers: list[Server]) -> None:
    """Wait forever. Raises: StartError when a server ends by itself; Stopped on a signal."""
    while all(server.is_running for server in servers):
        time.sleep(0.2)
    ended = next(server for server in servers if not server.is_running)
    raise StartError(
        f"{ended.name} ended by itself, with code {ended.exit_code}; {ended.log} ends:\n{ended.last_words()}"
    )
