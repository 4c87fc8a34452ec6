"""The system under test.

PostgreSQL with a synchronous standby, two Valkeys, two processes of booking, one each of messaging and stats.
"""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import redis

from ops.migrate import migrate, service_url
from ops.process import free_port
from ops.servers import Postgres, Valkey
from ops.up import Service
from tools.coherence.client import Spec
from tools.postgres_pair import Pair, Standby, wake
from tools.proxy import Proxy, proxy

POLL_MS = 1000  # REDIS_POLL: how far `bounded` may be behind
NEAR_MS = 1000  # REDIS_NEAR_LEASE
BUSY_MS = 250  # by which a poll may be late on a busy machine
PROCESSES = {"booking-1": "booking", "booking-2": "booking", "messaging": "messaging", "stats": "stats"}
CUT_OFF = "booking-2"  # the process whose connections to Valkey can be cut
SYNC_SECONDS = 20


class Link:
    """The connections of one service to one Valkey: a proxy on a thread of its own."""

    def __init__(self, between: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        """Take a proxy and its event loop."""
        self.port = between.port
        self._between = between
        self._loop = loop

    def cut(self, *, silent: bool) -> None:
        """Let nothing through any more; a silent cut closes no connection."""
        self._set(blackhole=silent, refuse=not silent, reset=not silent)

    def mend(self) -> None:
        """Let new connections through; the old ones may have lost bytes, and are closed."""
        self._set(blackhole=False, refuse=False, reset=True)

    def _set(self, *, blackhole: bool, refuse: bool, reset: bool) -> None:
        def change() -> None:
            self._between.blackhole, self._between.refuse = blackhole, refuse
            if reset:
                self._between.reset()

        self._loop.call_soon_threadsafe(change)


@contextmanager
def link(port: int) -> Iterator[Link]:
    """Run a link to a port of this machine."""
    started: asyncio.Queue[Link] = asyncio.Queue()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with proxy(port) as between:
            started.put_nowait(Link(between, loop))
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(started.get(), loop).result()
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


class System:
    """What runs. `valkey` is the master, `spare` its replica or former master."""

    def __init__(
        self, pair: Pair, valkeys: tuple[Valkey, Valkey], links: list[Link], services: dict[str, Service]
    ) -> None:
        """Take what runs."""
        self.pair = pair
        self.valkey, self.spare = valkeys
        self.links = links
        self.services = services

    @property
    def postgres(self) -> Postgres:
        """The primary."""
        return self.pair.primary

    def spec(self, ledger: Path, mode: str, seed: int, began: int) -> Spec:
        """Return what writers and readers need to know."""
        addresses = {name: f"127.0.0.1:{service.port}" for name, service in self.services.items()}
        return Spec(
            ledger=str(ledger),
            booking=[addresses[name] for name, module in PROCESSES.items() if module == "booking"],
            messaging=addresses["messaging"],
            stats=addresses["stats"],
            seed=seed,
            began=began,
            mode=mode,
            behind_ms=POLL_MS + BUSY_MS if mode == "bounded" else 0,
            near_ms=NEAR_MS,
        )

    def demote(self) -> None:
        """Promote the other Valkey and make the master its replica, in place."""
        with redis.Redis.from_url(self.valkey.url) as master, redis.Redis.from_url(self.spare.url) as replica:
            replica.replicaof("127.0.0.1", str(self.valkey.port))
            _until(lambda: replica.info("replication").get("master_link_status") == "up")
            replica.replicaof("NO", "ONE")
            master.replicaof("127.0.0.1", str(self.spare.port))
        self.valkey, self.spare = self.spare, self.valkey

    def promote(self) -> None:
        """Promote the standby, which has all commits; the caller has ended the primary, or hung it."""
        self.pair.standby.promote()

    def rebuild(self) -> None:
        """Make the old primary a synchronous standby of the new one."""
        new, old = self.pair.standby, self.pair.primary
        if old.is_running:
            wake(old)
            old.kill()
        shutil.rmtree(old.data)
        standby = Standby(old.data, new, self.pair.settings, port=old.port)
        self.pair.primary, self.pair.standby = new, standby
        standby.start()
        self.pair.synchronize()
        self.pair.caught_up()

    def stop(self) -> None:
        """Stop both databases, even if they hang."""
        for server in (self.pair.standby, self.pair.primary):
            if server.is_running:
                wake(server)
            server.stop()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SYNC_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


@contextmanager
def running(folder: Path, mode: str) -> Iterator[System]:
    """Run the system in a folder until the block ends; `mode` is REDIS_WITHOUT. Raises: StartError."""
    with ExitStack() as stack:
        pair = Pair(folder)
        pair.primary.start()
        migrate(pair.primary.dsn)
        first, second = (
            stack.enter_context(Valkey(data=folder / name, log=folder / f"log/{name}.log"))
            for name in ("valkey-1", "valkey-2")
        )
        links = [stack.enter_context(link(server.port)) for server in (first, second)]
        ports = {name: free_port() for name in PROCESSES}
        shared = {
            "HOST": "127.0.0.1",
            "METRICS_PORT": "0",
            "BOOKING_ADDRESS": f"127.0.0.1:{ports['booking-1']}",
            "WHATSAPP_APP_SECRET": "parlor-dev",
            "REDIS_WITHOUT": mode,
            "REDIS_POLL": str(POLL_MS),
        }
        services: dict[str, Service] = {}
        system = System(pair, (first, second), links, services)
        stack.callback(system.stop)
        pair.standby.start()
        pair.synchronize()
        hosts = urlsplit(pair.url()).netloc.rpartition("@")[2]
        for name, module in PROCESSES.items():
            url = urlsplit(service_url(pair.primary.dsn, f"parlor_{module}"))
            caches = links if name == CUT_OFF else (first, second)
            own = {
                "PORT": str(ports[name]),
                f"{module.upper()}_DATABASE_URL": url._replace(
                    netloc=f"{url.netloc.rpartition('@')[0]}@{hosts}", query="target_session_attrs=primary"
                ).geturl(),
                "REDIS_URL": f"redis://{','.join(f'127.0.0.1:{cache.port}' for cache in caches)}/0",
            }
            services[name] = Service(module, ports[name], folder / f"log/{name}.log", shared | own)
            stack.callback(services[name].stop)
        for service in services.values():
            stack.callback(service.terminate)
            service.launch()
        for service in services.values():
            service.wait()
        yield system
