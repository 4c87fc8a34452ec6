"""The system under measurement: a bare echo and variants of the services, each server in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from ops.migrate import migrate
from ops.process import Server, free_port, free_ports, is_free, spawn
from ops.sample_data import load_sample_data
from ops.servers import Postgres, Valkey, postgres_url
from ops.up import Plan, Service, environments
from tests.benchmarks.cases import Case, Writes, add_calendar, add_open_salons, add_salons, cases, open_salons, writes
from tests.benchmarks.load import Target

SERVICES = ("booking", "messaging", "stats")
FILL = "import sys, ops.migrate as m, ops.sample_data as d; m.migrate(sys.argv[1]); d.load_sample_data(sys.argv[1], 1)"
WITHOUT_REFILLS = {"REDIS_REFILL": "0"}  # a removed entry stays a miss


class Echo(Server):
    """The bare grpcio server with grpcio's defaults, unless it is given the setting of libs/server/transport.py."""

    def __init__(self, log: Path, experiments: str = "") -> None:
        """Don't start it yet; `experiments` replace GRPC_EXPERIMENTS, which libs/server sets in this process."""
        super().__init__("echo", None, log)
        self.experiments = experiments

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it with this Python."""
        command = [sys.executable, "-m", "tests.benchmarks.echo", str(self.port)]
        return spawn(command, self.log, self.stop_signal, environment={"GRPC_EXPERIMENTS": self.experiments})

    def is_ready(self) -> bool:
        """Return whether it listens."""
        return not is_free(self.port)


def target(server: Server) -> Target:
    """Return the port and the process of a server."""
    return Target(server.port, server.pid)


@dataclass
class Variant:
    """The three services in one environment, on a separate database and Valkey."""

    name: str
    services: Mapping[str, Server]
    database_url: str
    redis_url: str
    writes: Writes

    def target(self, service: str) -> Target:
        """Return a service's process."""
        return target(self.services[service])

    @property
    def targets(self) -> list[Target]:
        """Every service's process, in the order of SERVICES."""
        return [self.target(service) for service in SERVICES]


@dataclass
class System:
    """The running echo, the variants by name, and the read cases for their common data."""

    echo: Server
    variants: Mapping[str, Variant]
    cases: Mapping[str, Case]


@contextmanager
def running(folder: Path, settings: Mapping[str, Mapping[str, str]], *, own_schemas: bool = False) -> Iterator[System]:
    """Run the echo, and a variant of the services for each name, with its additional environment.

    Each has a copy of the sample data at scale 1, so that the same writes are valid for all. The salons are open around
    the clock. The logs of a variant are in `folder`/NAME. With `own_schemas` a variant from another source tree has the
    schema of that tree; the ids of its sample data are other ones, so that only writes can be compared.
    """
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        migrate(postgres.dsn)
        load_sample_data(postgres.dsn, 1)
        _add(postgres.dsn)
        made = {case.method: case for case in cases(postgres.dsn)}
        variants = {
            name: _start(stack, postgres, folder / name, name, environment, own_schemas)
            for name, environment in settings.items()
        }
        yield System(stack.enter_context(Echo(folder / "echo.log")), variants, made)


def _add(database_url: str) -> None:
    """Add what the requests need besides the sample data."""
    open_salons(database_url)
    add_salons(database_url)
    add_open_salons(database_url)
    add_calendar(database_url)


def _start(
    stack: ExitStack,
    postgres: Postgres,
    folder: Path,
    name: str,
    environment: Mapping[str, str],
    own_schemas: bool,
) -> Variant:
    database = f"variant_{name}"
    is_own = own_schemas and "PYTHONPATH" in environment
    with psycopg.connect(postgres_url(postgres.port, "postgres"), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {database} TEMPLATE {'template0' if is_own else 'parlor'}".encode())
    if is_own:
        filled = postgres_url(postgres.port, database)
        subprocess.run([sys.executable, "-c", FILL, filled], env=os.environ | environment, check=True)  # noqa: S603
        _add(filled)
    valkey = stack.enter_context(Valkey())
    ports = {service: free_port() for service in SERVICES}
    plan = Plan(folder, None, False, 1, ports, free_ports(len(ports))[0])
    local = postgres.local_dsn.replace("/parlor", f"/{database}", 1)
    usual = environments(plan, local, valkey.local_url)
    own = {service: {**usual[service], **WITHOUT_REFILLS, **environment} for service in SERVICES}
    services = {
        service: stack.enter_context(
            Service(
                service, ports[service], folder / f"{service}.log", {**own[service], **WITHOUT_REFILLS, **environment}
            )
        )
        for service in SERVICES
    }
    url = postgres_url(postgres.port, database)
    return Variant(name, services, url, valkey.url, writes(url, own["messaging"]["WHATSAPP_APP_SECRET"]))
