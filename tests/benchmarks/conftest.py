"""The system under measurement: servers and services in processes of their own, and the table at the end."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ops.migrate import migrate
from ops.process import Server, free_port, free_ports, is_free, spawn
from ops.seed import seed
from ops.servers import Postgres, Valkey
from ops.up import Plan, Service, environments
from tests.benchmarks.cases import Case, add_calendar, add_salons, cases

DOCS = Path(__file__).parents[2] / "docs/performance.md"
HEADING = "| RPC | in flight | echo, us | near | warm | cold | cache off |\n|---|---|---|---|---|---|---|\n"


class Echo(Server):
    """The bare grpcio server: grpc as it comes, without what libs/rpc/transport.py sets, unless it is asked for."""

    def __init__(self, log: Path, experiments: str = "") -> None:
        """Start nothing yet; `experiments` are GRPC_EXPERIMENTS, which this process has from libs/rpc."""
        super().__init__("echo", None, log)
        self.experiments = experiments

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it with this Python."""
        command = [sys.executable, "-m", "tests.benchmarks.echo", str(self.port)]
        return spawn(command, self.log, self.stop_signal, environment={"GRPC_EXPERIMENTS": self.experiments})

    def is_ready(self) -> bool:
        """Return whether it listens."""
        return not is_free(self.port)


@dataclass
class System:
    """What runs: ports and process ids by name, and the cases over its data."""

    servers: dict[str, Server]
    redis_url: str
    cases: dict[str, Case]
    rows: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Postgres, Valkey, the seed's data set at scale 1, the three services and the echo."""
    folder = tmp_path_factory.mktemp("bench")
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        valkey = stack.enter_context(Valkey())
        migrate(postgres.dsn)
        seed(postgres.dsn, 1)
        add_salons(postgres.dsn)
        add_calendar(postgres.dsn)
        ports = {name: free_port() for name in ("booking", "messaging", "stats")}
        plan = Plan(folder, None, False, 1, ports, free_ports(len(ports))[0])
        settings = environments(plan, postgres.local_dsn, valkey.local_url)
        cold = {"REDIS_WARM": "0"}  # what was dropped stays a miss
        servers: dict[str, Server] = {
            name: stack.enter_context(Service(name, ports[name], folder / f"{name}.log", settings[name] | cold))
            for name in ports
        }
        servers["echo"] = stack.enter_context(Echo(folder / "echo.log"))
        yield System(servers, valkey.url, {case.method: case for case in cases(postgres.dsn)})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --write-docs."""
    parser.addoption("--write-docs", action="store_true", help="Put the table into docs/performance.md.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it down if asked."""
    rows = [str(row) for row in config.stash.get(ROWS, [])]
    if not rows:
        return
    terminalreporter.section("server CPU per RPC, as a multiple of the echo's")
    table = HEADING + "\n".join(rows)
    terminalreporter.write_line(table)
    if config.getoption("--write-docs"):
        text = DOCS.read_text()
        marked = f"<!-- bench -->\n{table}\n<!-- /bench -->"
        DOCS.write_text(re.sub(r"<!-- bench -->.*<!-- /bench -->", lambda _: marked, text, flags=re.DOTALL))


ROWS = pytest.StashKey[list[str]]()
