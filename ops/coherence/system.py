"""The system that is tried: PostgreSQL, Valkey, two processes of booking, messaging and stats, all of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.coherence.calls import Spec
from ops.migrate import migrate, service_url
from ops.process import free_port
from ops.proxy import Proxy, proxy
from ops.servers import Postgres, Valkey
from ops.up import Service

POLL_MS = 1000  # L: what `bounded` says that a read may be behind
NEAR_MS = 1000  # what an entry of the near cache may be behind
PROCESSES = {"booking-1": "booking", "booking-2": "booking", "messaging": "messaging", "stats": "stats"}
CUT_OFF = "booking-2"  # the one whose way to Valkey can be cut


class Line:
    """The way of one service to Valkey: a proxy on a thread of its own."""

    def __init__(self, between: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        """Take a proxy and the loop it runs on."""
        self.port = between.port
        self._between = between
        self._loop = loop

    def cut(self, *, silent: bool) -> None:
        """Let nothing through any more; a silent cut closes no connection."""

        def cut() -> None:
            self._between.blackhole, self._between.refuse = silent, not silent
            if not silent:
                self._between.reset()

        self._loop.call_soon_threadsafe(cut)

    def mend(self) -> None:
        """Let new connections through; those that were cut off may have lost bytes, and end."""

        def mend() -> None:
            self._between.blackhole = self._between.refuse = False
            self._between.reset()

        self._loop.call_soon_threadsafe(mend)


@contextmanager
def line(port: int) -> Iterator[Line]:
    """Run a line to a port of this machine."""
    started: asyncio.Queue[Line] = asyncio.Queue()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with proxy(port) as between:
            started.put_nowait(Line(between, loop))
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(started.get(), loop).result()
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


@dataclass(frozen=True)
class System:
    """What runs."""

    postgres: Postgres
    valkey: Valkey
    services: dict[str, Service]
    line: Line

    def spec(self, board: Path, mode: str, seed: int, began: int) -> Spec:
        """Return what writers and readers are told."""
        addresses = {name: f"127.0.0.1:{service.port}" for name, service in self.services.items()}
        return Spec(
            board=str(board),
            booking=[addresses[name] for name, module in PROCESSES.items() if module == "booking"],
            messaging=addresses["messaging"],
            stats=addresses["stats"],
            seed=seed,
            began=began,
            mode=mode,
            behind_ms=POLL_MS if mode == "bounded" else 0,
            near_ms=NEAR_MS,
        )


@contextmanager
def running(folder: Path, mode: str) -> Iterator[System]:
    """Run the system in a folder until the block ends; `mode` is REDIS_WITHOUT. Raises: StartError."""
    with ExitStack() as stack:
        postgres = stack.enter_context(Postgres(folder / "postgres", log=folder / "log/postgres.log"))
        valkey = stack.enter_context(Valkey(data=folder / "valkey", log=folder / "log/valkey.log"))
        migrate(postgres.dsn)
        cuttable = stack.enter_context(line(valkey.port))
        ports = {name: free_port() for name in PROCESSES}
        shared = {
            "HOST": "127.0.0.1",
            "METRICS_PORT": "0",
            "BOOKING_ADDRESS": f"127.0.0.1:{ports['booking-1']}",
            "WHATSAPP_APP_SECRET": "parlor-dev",
            "REDIS_WITHOUT": mode,
            "REDIS_POLL": str(POLL_MS),
        }
        services = {}
        for name, module in PROCESSES.items():
            own = {
                "PORT": str(ports[name]),
                f"{module.upper()}_DATABASE_URL": service_url(postgres.dsn, f"parlor_{module}"),
                "REDIS_URL": f"redis://127.0.0.1:{cuttable.port}/0" if name == CUT_OFF else valkey.url,
            }
            services[name] = Service(module, ports[name], folder / f"log/{name}.log", shared | own)
            stack.callback(services[name].stop)
        for service in services.values():
            stack.callback(service.terminate)
            service.launch()
        for service in services.values():
            service.wait()
        yield System(postgres, valkey, services, cuttable)
