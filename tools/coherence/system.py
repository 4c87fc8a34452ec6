"""The system that is tested: two Postgres, two Valkey, two processes of booking, messaging and stats."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.migrate import service_url
from ops.process import Server, free_ports, is_free, spawn
from ops.servers import Valkey
from ops.up import Service
from tools.coherence.client import SECRET, Spec
from tools.postgres_pair import Pair, pair

POLL_MS = 1000
NEAR_MS = 1000
PROCESSES = {"booking-1": "booking", "booking-2": "booking", "messaging": "messaging", "stats": "stats"}
CUT_OFF = "booking-2"  # the process whose connections to Valkey can be cut


class Link(Server):
    """Proxies between a process and servers, in a process: killed, they close connections; stopped, they are silent."""

    def __init__(self, targets: Sequence[int], log: Path) -> None:
        """Choose a port for each target port."""
        self.ports = free_ports(len(targets))
        super().__init__("proxies", self.ports[0], log)
        self._pairs = [f"{port}:{target}" for port, target in zip(self.ports, targets, strict=True)]

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process."""
        return spawn([sys.executable, "-m", "tools.proxy", *self._pairs], self.log, self.stop_signal)

    def is_ready(self) -> bool:
        """Return whether all ports are taken."""
        return not any(map(is_free, self.ports))


@dataclass
class System:
    """What runs."""

    postgres: Pair
    master: Valkey
    replica: Valkey
    link: Link
    services: dict[str, Service]

    def spec(self, file: Path, mode: str, seed: int, began: int) -> Spec:
        """Return what the client processes need to know."""
        addresses = [(service.name, f"127.0.0.1:{service.port}") for service in self.services.values()]
        behind_ms = POLL_MS if mode == "bounded" else 0
        return Spec(file, addresses, seed, began, behind_ms, NEAR_MS, mode == "refuse", os.getpid())


@contextmanager
def running(folder: Path, mode: str) -> Iterator[System]:
    """Run the system in a folder until the block ends; `mode` is REDIS_WITHOUT. Raises: StartError."""
    with ExitStack() as stack:
        postgres = stack.enter_context(pair(folder, synchronous=True))
        options = ("--repl-diskless-sync-delay", "0")
        master, replica = [
            stack.enter_context(Valkey(data=folder / name, options=options)) for name in ("valkey-1", "valkey-2")
        ]
        replica.follow(master)
        link = stack.enter_context(Link([master.port, replica.port], folder / "log/proxies.log"))
        ports = dict(zip(PROCESSES, free_ports(len(PROCESSES)), strict=True))
        shared = {
            "HOST": "127.0.0.1",
            "BOOKING_ADDRESS": f"127.0.0.1:{ports['booking-1']}",
            "WHATSAPP_APP_SECRET": SECRET,
            "REDIS_WITHOUT": mode,
            "REDIS_POLL": str(POLL_MS),
            "REDIS_NEAR_LEASE": str(NEAR_MS),
        }
        services = {}
        for name, module in PROCESSES.items():
            first, second = link.ports if name == CUT_OFF else (master.port, replica.port)
            environment = {
                "PORT": str(ports[name]),
                f"{module.upper()}_DATABASE_URL": service_url(postgres.url(), f"parlor_{module}"),
                "REDIS_URL": f"redis://127.0.0.1:{first},127.0.0.1:{second}/0",
            }
            services[name] = Service(module, ports[name], folder / f"log/{name}.log", shared | environment)
            stack.callback(services[name].stop)
        for service in services.values():
            stack.callback(service.terminate)
            service.launch()
        for service in services.values():
            service.wait()
        yield System(postgres, master, replica, link, services)
