"""A master, its replica, and Sentinels that watch them."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis

from ops.process import spawn
from ops.servers import Valkey
from tests.conftest import WITH_USER, valkey_binary

NAME = "parlor"
DOWN_AFTER_MS = 1000
FAILOVER_TIMEOUT_MS = 5000


class Sentinel(Valkey):
    """A Sentinel that watches a master under NAME."""

    def __init__(self, master: Valkey, quorum: int = 2) -> None:
        """Don't start it yet."""
        super().__init__(binary=valkey_binary())
        self._lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.data}",
            f"sentinel monitor {NAME} 127.0.0.1 {master.port} {quorum}",
            f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {NAME} {FAILOVER_TIMEOUT_MS}",
        ]

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it with a configuration file, which it rewrites."""
        file = self.data / "sentinel.conf"
        if not file.exists():
            file.write_text("\n".join([*self._lines, ""]))
        return spawn([str(self.binary), str(file), "--sentinel"], self.log, self.stop_signal)


def ask(server: Valkey, *command: str | int) -> Any:
    """Return the reply of a server to a command."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.execute_command(*command)


def is_master(server: Valkey) -> bool:
    """Return whether a server is a master."""
    with suppress(redis.ConnectionError):  # a promotion drops its clients
        return str(ask(server, "INFO", "replication")["role"]) == "master"
    return False


def has_replica(server: Valkey) -> bool:
    """Return whether a replica has all data of a server."""
    info = ask(server, "INFO", "replication")
    return any(value["state"] == "online" for name, value in info.items() if name.startswith("slave"))


def knows(sentinel: Sentinel, others: int) -> bool:
    """Return whether a Sentinel knows the replica and `others` other Sentinels."""
    found = ask(sentinel, "SENTINEL", "MASTER", NAME)
    return (int(found["num-slaves"]), int(found["num-other-sentinels"])) == (1, others)


def named(sentinel: Sentinel) -> int:
    """Return the port of the master named by a Sentinel."""
    return int(ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])


def hosts(servers: Sequence[Valkey]) -> str:
    """Return servers in the form of a URL's hosts."""
    return ",".join(f"127.0.0.1:{server.port}" for server in servers)


def sentinel_url(sentinels: Sequence[Valkey]) -> str:
    """Return the URL with Sentinels of their master."""
    return f"redis+sentinel://{hosts(sentinels)}/{NAME}"


@dataclass(frozen=True)
class Replicated:
    """A master and its replica."""

    master: Valkey
    replica: Valkey
    sentinels: Sequence[Sentinel]


@contextmanager
def replicated(sentinels: int = 0) -> Iterator[Replicated]:
    """Run a master, a synchronized replica, and Sentinels that know both and each other."""
    with ExitStack() as exits:
        options = (*WITH_USER, "--repl-diskless-sync-delay", "0")
        master = exits.enter_context(Valkey(binary=valkey_binary(), options=options))
        of = ("--replicaof", f"127.0.0.1 {master.port}")
        replica = exits.enter_context(Valkey(binary=valkey_binary(), options=(*options, *of)))
        watching = [exits.enter_context(Sentinel(master)) for _ in range(sentinels)]
        wait_for(lambda: has_replica(master) and all(knows(sentinel, sentinels - 1) for sentinel in watching))
        yield Replicated(master, replica, watching)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds. Raises: TimeoutError after 20 s."""
    ends = time.monotonic() + 20
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.02)
