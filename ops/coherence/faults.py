"""What happens to the system while it is read and written to: one thing after another, with calm in between."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import redis

from ops.coherence.system import CUT_OFF, System
from ops.process import Server

DOWN_SECONDS = 0.0, 1.0
PAUSED_SECONDS = 0.5, 3.0
CUT_SECONDS = 0.5, 3.0
CALM_SECONDS = 3.0, 7.0
EVICTED = 300  # keys, at most


class Faults:
    """Does what a shuffled deck says; when it is through, shuffles again."""

    def __init__(self, system: System, seed: int, *, strict: bool) -> None:
        """Do nothing yet; `strict` says whether no read may be stale, whatever happens at once."""
        self.system = system
        self.random = random.Random(seed)  # noqa: S311
        self._strict = strict
        self._deck: list[tuple[str, Callable[[], None]]] = []

    def calm(self) -> float:
        """Return for how long nothing shall happen now, in s."""
        return self.random.uniform(*CALM_SECONDS)

    def strike(self) -> str:
        """Do the next thing, until all runs again; return what it was. Raises: StartError."""
        if not self._deck:
            self._deck = self.deck()
            self.random.shuffle(self._deck)
        name, do = self._deck.pop()
        do()
        return name

    def deck(self) -> list[tuple[str, Callable[[], None]]]:
        """Return each thing that can happen, by its name."""
        system = self.system
        deck: list[tuple[str, Callable[[], None]]] = []
        for name, service in system.services.items():
            deck.append((f"{name} killed", partial(self.restart, service)))
            deck.append((f"{name} paused", partial(self.pause, service)))
        for silent, how in ((False, "cut off"), (True, "cut off silently")):
            deck += [(f"{CUT_OFF} {how} from Valkey", partial(self.cut, silent=silent))] * 2
        if self._strict:
            deck.append((f"PostgreSQL crashed while {CUT_OFF} was cut off from Valkey", self.crash_in_a_cut))
        return [
            *deck,
            ("PostgreSQL crashed", partial(self.restart, system.postgres)),
            ("Valkey killed", partial(self.restart, system.valkey)),
            ("Valkey paused", partial(self.pause, system.valkey)),
            ("Valkey flushed", self.flush),
            ("Valkey flushed while booking-1 was paused", self.flush_in_a_pause),
            ("keys evicted", self.evict),
        ]

    def restart(self, server: Server) -> None:
        """Kill a server and start it again."""
        server.kill()
        self.sleep(DOWN_SECONDS)
        server.start()

    def pause(self, server: Server) -> None:
        """Stop a process for a while."""
        with self.stopped(server):
            self.sleep(PAUSED_SECONDS)

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
        """Keep one service from Valkey for a while."""
        self.system.line.cut(silent=silent)
        self.sleep(CUT_SECONDS)
        self.system.line.mend()

    def crash_in_a_cut(self) -> None:
        """Crash PostgreSQL while one service is kept from Valkey: nobody can see what that has left pending."""
        self.system.line.cut(silent=False)
        self.sleep(DOWN_SECONDS)
        self.restart(self.system.postgres)
        self.system.line.mend()

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
