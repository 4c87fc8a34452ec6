"""A process of readers: `python -m tools.coherence.reader PROCESS SPEC`. It prints what it finds, as lines of JSON."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from tools.coherence.client import AWAY, TIMEOUT_SECONDS, Spec, Stubs, start
from tools.coherence.ledger import SALONS, WRITERS, Ledger, describe
from tools.coherence.reads import Read, Reads

AT_ONCE = 3  # reads of this process under way at each service
PAUSE_SECONDS = 0.005
AWAY_SECONDS = 0.05
MOST_FINDINGS = 20  # printed; all are counted
NS = 1_000_000  # of a ms


class Reader:
    """Makes reads, and checks each."""

    def __init__(self, spec: Spec, process: int, services: Stubs) -> None:
        """Read nothing yet."""
        self.services = services
        self.spec = spec
        self.ledger = Ledger(spec.file, process)
        self.random = random.Random(f"{spec.seed} {process}")  # noqa: S311
        self.found = 0

    async def run(self) -> None:
        """Read until all shall end, once there is something to read."""
        reads = Reads(self.ledger, self.random, self.spec.began)
        of_booking = [reads.salon, reads.salon_by_phone_number_id, reads.batch]
        of_booking += [reads.booking] * 3 + [reads.bookings] * 2 + [reads.events] * 2
        while self.ledger.total("ready") < WRITERS:  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(AWAY_SECONDS)
        self.ledger.count_total("ready")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                for stub in self.services.booking:
                    tasks.create_task(self.repeat(stub, of_booking))
                tasks.create_task(self.repeat(self.services.messaging, [reads.conversation, reads.messages]))
                tasks.create_task(self.repeat(self.services.stats, [reads.salon_stats, reads.booking_stats]))

    async def repeat(self, stub: Any, kinds: Sequence[Callable[[int], Read]]) -> None:
        """Make one read after another at a service."""
        while not self.ledger.ending:
            read = self.random.choice(kinds)(self.random.randrange(SALONS))
            answered = await self.read(getattr(stub, read.rpc), read)
            await asyncio.sleep(PAUSE_SECONDS if answered else AWAY_SECONDS)

    async def read(self, rpc: Any, read: Read) -> bool:
        """Make a read and check it; return whether it was answered."""
        behind = self.spec.behind_ms * NS
        known = [self.ledger.known(fact) for fact in read.facts]
        least = known if self.spec.mode == "refuse" else [self.ledger.acknowledged(fact) for fact in read.facts]
        began = time.monotonic_ns()
        call, source = rpc(read.request, timeout=TIMEOUT_SECONDS), ""
        self.ledger.count(read.rpc, "rpcs")
        try:
            shown = read.shown(await call)
            source = str(dict(await call.trailing_metadata())["x-cache"])
            self.ledger.count(read.rpc, source)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                self.failed(read, error)
                return False
            shown = [0] * len(read.facts)  # what it says of all that it was asked for
        self.ledger.count(read.rpc, "reads", len(shown) if read.rpc == "BatchGetBookings" else 1)
        self.check(read, least, shown, source, began, behind + (self.spec.near_ms * NS if source == "near" else 0))
        if any(one <= value < other for one, value, other in zip(least, shown, known, strict=True)):
            self.ledger.count(read.rpc, "split")
        return True

    def check(
        self, read: Read, least: Sequence[int], shown: Sequence[int], source: str, began: int, bound: int
    ) -> None:
        """Compare what a reply shows with what it must; `bound` ns is how long it may be behind."""
        stale = False
        for fact, wanted, value in zip(read.facts, least, shown, strict=True):
            self.ledger.see(fact, value)
            if value >= wanted:
                continue
            age = self.ledger.behind_ns(fact, value, began)
            self.ledger.note_oldest(read.rpc, age)
            if age > bound or not bound:
                stale = True
                acknowledged = self.ledger.acknowledged(fact)
                self.tell(
                    read.rpc,
                    fact=describe(fact),
                    shown=value,
                    known=wanted,
                    acknowledged=acknowledged,
                    age_ms=age / NS,
                    source=source,
                    began_ns=began,
                )
        if stale:
            self.ledger.count(read.rpc, "stale")

    def failed(self, read: Read, error: grpc.aio.AioRpcError) -> None:
        """Count a failure, which is no finding while something is away."""
        self.ledger.count(read.rpc, "failed")
        if error.code() not in AWAY:
            self.ledger.count_total("unexpected")
            self.tell(read.rpc, code=error.code().name, details=error.details())

    def tell(self, rpc: str, **found: Any) -> None:
        """Print a finding."""
        self.found += 1
        if self.found <= MOST_FINDINGS:
            print(json.dumps({"rpc": rpc, **found}), flush=True)


if __name__ == "__main__":
    start(Reader)
