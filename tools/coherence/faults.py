"""The faults that are injected, one after another, with calm in between."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import redis

from ops.process import Server
from tools.coherence.system import CUT_OFF, System
from tools.postgres_pair import hang, wake

DOWN_SECONDS = 0.0, 1.0
PAUSED_SECONDS = 0.5, 3.0
CUT_SECONDS = 0.5, 3.0
HUNG_SECONDS = 3.0, 6.0
CALM_SECONDS = 3.0, 7.0
EVICTED = 300  # keys, at most


class Faults:
    """Injects all faults in random order; when all have been, shuffles again."""

    def __init__(self, system: System, seed: int, *, strict: bool, only: str = "") -> None:
        """`strict`: no read may be stale, whatever happens at once. `only`: faults whose name contains this text."""
        self.system = system
        self.random = random.Random(seed)  # noqa: S311
        self._strict = strict
        self._only = only
        self._queue: list[tuple[str, Callable[[], None]]] = []

    def calm(self) -> float:
        """Return the time until the next fault, in s."""
        return self.random.uniform(*CALM_SECONDS)

    def inject(self) -> str:
        """Inject the next fault and wait until everything runs again; return its name. Raises: StartError."""
        if not self._queue:
            self._queue = [(name, fault) for name, fault in self.all() if self._only in name]
            self.random.shuffle(self._queue)
        name, fault = self._queue.pop()
        fault()
        return name

    def all(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield each fault with its name."""
        for name in self.system.services:
            service = partial(self.system.services.__getitem__, name)
            yield f"{name} killed", partial(self.restart, service)
            yield f"{name} paused", partial(self.pause, service)
        for silent, how in ((False, "cut off"), (True, "cut off silently")) * 2:
            yield f"{CUT_OFF} {how} from Valkey", partial(self.cut, silent=silent)
        if self._strict:
            yield f"PostgreSQL crashed while {CUT_OFF} was cut off from Valkey", self.crash_in_a_cut
        yield "PostgreSQL crashed", partial(self.restart, lambda: self.system.postgres)
        yield "PostgreSQL hung", self.hang
        yield "PostgreSQL killed and its standby promoted", partial(self.promote, self.kill)
        yield "PostgreSQL hung and its standby promoted", partial(self.promote, lambda: hang(self.system.postgres))
        yield "Valkey killed", partial(self.restart, lambda: self.system.valkey)
        yield "Valkey paused", partial(self.pause, lambda: self.system.valkey)
        yield "Valkey demoted in place", self.system.demote
        yield "Valkey flushed", self.flush
        yield "Valkey flushed while booking-1 was paused", self.flush_in_a_pause
        yield "keys evicted", self.evict

    def restart(self, server: Callable[[], Server]) -> None:
        """Kill a server and start it again."""
        killed = server()
        killed.kill()
        self.sleep(DOWN_SECONDS)
        killed.start()

    def pause(self, server: Callable[[], Server]) -> None:
        """Stop a process for a while."""
        with self.stopped(server()):
            self.sleep(PAUSED_SECONDS)

    def kill(self) -> None:
        """Kill the primary."""
        self.system.postgres.kill()

    def hang(self) -> None:
        """Stop all processes of the primary for a while: its port accepts, and nobody answers."""
        hang(self.system.postgres)
        try:
            self.sleep(HUNG_SECONDS)
        finally:
            wake(self.system.postgres)

    def promote(self, fail: Callable[[], None]) -> None:
        """Make the primary fail, promote the standby, and later make the old primary its standby."""
        fail()
        self.sleep(DOWN_SECONDS)
        self.system.promote()
        self.sleep(CALM_SECONDS)
        self.system.rebuild()

    def flush(self) -> None:
        """Delete all keys."""
        with redis.Redis.from_url(self.system.valkey.url) as client:
            client.flushall()

    def flush_in_a_pause(self) -> None:
        """Delete all keys between two steps of whatever a service is doing."""
        with self.stopped(self.system.services["booking-1"]):
            self.sleep(DOWN_SECONDS)
            self.flush()
            self.sleep(DOWN_SECONDS)

    def evict(self) -> None:
        """Delete some keys, as a server short of memory does."""
        with redis.Redis.from_url(self.system.valkey.url) as client:
            for _ in range(EVICTED):
                if key := client.randomkey():
                    client.unlink(key)

    def cut(self, *, silent: bool) -> None:
        """Cut one service off from Valkey for a while."""
        for link in self.system.links:
            link.cut(silent=silent)
        self.sleep(CUT_SECONDS)
        for link in self.system.links:
            link.mend()

    def crash_in_a_cut(self) -> None:
        """Crash PostgreSQL while one service is cut off from Valkey: nobody can read what that left in the outbox."""
        for link in self.system.links:
            link.cut(silent=False)
        self.sleep(DOWN_SECONDS)
        self.restart(lambda: self.system.postgres)
        for link in self.system.links:
            link.mend()

    @contextmanager
    def stopped(self, server: Server) -> Iterator[None]:
        """Stop a process for the block."""
        os.kill(server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(server.pid, signal.SIGCONT)

    def sleep(self, seconds: tuple[float, float]) -> None:
        """Wait for a time between two."""
        time.sleep(self.random.uniform(*seconds))
