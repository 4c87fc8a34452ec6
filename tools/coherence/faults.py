"""The faults, one after the other, with calm in between."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import redis

from ops.process import Server
from ops.servers import Postgres
from tools.coherence.system import CUT_OFF, System
from tools.postgres_pair import hang, until, wake

CALM_SECONDS = 3.0, 7.0
SHORT_SECONDS = 0.0, 1.0
LONG_SECONDS = 0.5, 3.0
MOST_EVICTED = 300  # keys
POSTGRES = "Postgres"  # so begin the names of the faults after which lost writes are looked for


class Faults:
    """Every kind of fault in random order, then again."""

    def __init__(self, system: System, seed: int, mode: str, only: str = "") -> None:
        """Do nothing yet. `only`: kinds whose name contains this text."""
        self.system = system
        self.random = random.Random(seed)  # noqa: S311
        self._mode = mode
        self._only = only
        self._next: list[tuple[str, Callable[[], None]]] = []

    def calm(self) -> float:
        """Return how long no fault should happen now, in s."""
        return self.random.uniform(*CALM_SECONDS)

    def happen(self) -> str:
        """Make the next fault happen; return its name once everything runs again. Raises: StartError."""
        if not self._next:
            self._next = [(name, happen) for name, happen in self.kinds().items() if self._only in name]
            self.random.shuffle(self._next)
        name, happen = self._next.pop()
        happen()
        return name

    def kinds(self) -> dict[str, Callable[[], None]]:
        """Return each kind of fault by its name."""
        system = self.system
        kinds: dict[str, Callable[[], None]] = {}
        for name, service in system.services.items():
            kinds |= {f"{name} killed": partial(self.restart, service), f"{name} paused": partial(self.pause, service)}
        if self._mode != "bounded":  # decision 0018 says what this does to it
            kinds[f"{POSTGRES} crashed while {CUT_OFF} was cut off from Valkey"] = self.crash_while_cut
        if self._mode != "refuse":  # decision 0030: reads may be a poll behind while there are two masters
            kinds["Valkey replica promoted, then the master demoted"] = self.two_masters
        return kinds | {
            f"{CUT_OFF} cut off from Valkey": partial(self.restart, system.link),
            f"{CUT_OFF} cut off from Valkey silently": partial(self.pause, system.link),
            "Valkey killed": lambda: self.restart(system.master),
            "Valkey paused": lambda: self.pause(system.master),
            "Valkey flushed": self.flush,
            "Valkey flushed while booking-1 was paused": self.flush_in_a_pause,
            "Valkey keys evicted": self.evict,
            "Valkey master demoted by a planned failover": self.planned_failover,
            f"{POSTGRES} crashed": self.crash,
            f"{POSTGRES} hung": self.hang,
            f"{POSTGRES} primary killed, standby promoted": partial(self.promote, Postgres.kill),
            f"{POSTGRES} primary hung, standby promoted": partial(self.promote, hang),
            f"{POSTGRES} primary hung, standby promoted, primary woken": partial(self.promote, hang, wakes=True),
        }

    def restart(self, server: Server) -> None:
        """Kill a process and start it again."""
        server.kill()
        self.sleep(SHORT_SECONDS)
        server.start()

    def pause(self, server: Server) -> None:
        """Stop a process for a while."""
        with self.stopped(server):
            self.sleep(LONG_SECONDS)

    def flush(self) -> None:
        """Delete all keys."""
        with redis.Redis.from_url(self.system.master.url) as client:
            client.flushall()

    def flush_in_a_pause(self) -> None:
        """Delete all keys between two steps of a process."""
        with self.stopped(self.system.services["booking-1"]):
            self.sleep(SHORT_SECONDS)
            self.flush()
            self.sleep(SHORT_SECONDS)

    def evict(self) -> None:
        """Delete some keys, as a server short of memory does."""
        with redis.Redis.from_url(self.system.master.url) as client:
            for _ in range(MOST_EVICTED):
                if key := client.randomkey():
                    client.unlink(key)

    def two_masters(self) -> None:
        """Promote the replica; demote the master, whose process goes on, a little later."""
        with self.swapped_valkeys():
            self.system.replica.follow(None)
            self.sleep(SHORT_SECONDS)
            self.system.master.follow(self.system.replica)

    def planned_failover(self) -> None:
        """Have the master hand over to its replica: at no time are there two masters."""
        with self.swapped_valkeys(), redis.Redis.from_url(self.system.master.url) as client:
            client.execute_command("FAILOVER", "TO", "127.0.0.1", self.system.replica.port)
            until(lambda: client.info("replication")["role"] == "slave")

    @contextmanager
    def swapped_valkeys(self) -> Iterator[None]:
        """Swap the roles for a block that does so; before and after it the replica has all data."""
        self.until_replicated()
        yield
        self.system.master, self.system.replica = self.system.replica, self.system.master
        self.until_replicated()

    def until_replicated(self) -> None:
        """Wait until the replica has all data."""
        with redis.Redis.from_url(self.system.replica.url) as client:
            until(lambda: client.info("replication").get("master_link_status") == "up")

    def crash(self) -> None:
        """Crash the primary and start it again."""
        self.restart(self.system.postgres.primary)
        self.system.postgres.synchronized()

    def crash_while_cut(self) -> None:
        """Crash the primary while one process is kept from Valkey: nobody can read what its writes left pending."""
        self.system.link.kill()
        self.sleep(SHORT_SECONDS)
        self.crash()
        self.system.link.start()

    def hang(self) -> None:
        """Stop every process of the primary for a while; its port accepts connections."""
        hang(self.system.postgres.primary)
        self.sleep(LONG_SECONDS)
        wake(self.system.postgres.primary)
        self.system.postgres.synchronized()

    def promote(self, fail: Callable[[Postgres], None], *, wakes: bool = False) -> None:
        """Make the primary fail, promote the standby, and make a new standby; the old primary may wake before that."""
        primary = self.system.postgres.primary
        fail(primary)
        self.sleep(LONG_SECONDS)
        self.system.postgres.standby.promote()
        if wakes:
            self.sleep(SHORT_SECONDS)
            wake(primary)
        self.sleep(LONG_SECONDS)
        self.system.postgres.swap()

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
