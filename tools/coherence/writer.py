"""A process of writers: `python -m tools.coherence.writer PROCESS SPEC`. It prints what it finds, as lines of JSON.

Each salon belongs to one of these processes, and none writes to the same thing twice at once: so it knows what every
fact is. A write whose outcome is unknown is repeated, anywhere, with its request_id, until it is acknowledged.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import grpc

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from tools.coherence import ledger as facts
from tools.coherence.client import AWAY, TIMEOUT_SECONDS, Spec, Stubs, day, phone, phone_number_id, salon_id, start
from tools.coherence.ledger import CUSTOMERS, PERIODS, SALONS, SLOTS, WRITERS, Ledger

FIRST_SLOTS = 25  # bookings that a customer has when the readers begin
AT_ONCE = 6  # writes of this process under way
MOST_IN_A_ROW = 5
PAUSE_SECONDS = 0.6  # after each write, in the mean
AWAY_SECONDS = 0.1
TICK_SECONDS = 0.05


class Writer:
    """Writes, and notes what was acknowledged."""

    def __init__(self, spec: Spec, process: int, services: Stubs) -> None:
        """Write nothing yet."""
        self.ledger = Ledger(spec.file, process)
        self.random = random.Random(f"{spec.seed} {process}")  # noqa: S311
        self.services = services
        self.salons = range(process, SALONS, WRITERS)
        self.values: dict[int, int] = {}  # of facts, as acknowledged
        self.moves: dict[int, int] = {}  # of bookings: how often each was rescheduled
        self.steps: dict[int, int] = {}  # of bookings: 0 PENDING, 1 CONFIRMED, 2 COMPLETED
        self.busy: set[int] = set()

    async def run(self) -> None:
        """Make what the readers begin with, then write until all shall end."""
        for salon in self.salons:
            await self.rename(salon)
            for slot in range(FIRST_SLOTS):
                await asyncio.gather(*(self.create(salon, customer, slot) for customer in range(CUSTOMERS)))
        self.ledger.count_total("ready")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self.repeat())

    async def repeat(self) -> None:
        """Write several times in a row to a salon, rest, and so on."""
        kinds = [self.rename, self.create_next, self.reschedule, self.reschedule, self.step, self.send, self.send]
        while not self.ledger.ending:
            salon, writes = self.random.choice(self.salons), self.random.randint(1, MOST_IN_A_ROW)
            for _ in range(writes):
                await self.random.choice(kinds)(salon)
            rested = time.monotonic() + self.random.expovariate(1 / (PAUSE_SECONDS * writes))
            while time.monotonic() < rested and not self.ledger.ending:  # noqa: ASYNC110 - of other processes
                await asyncio.sleep(TICK_SECONDS)

    # Writes

    async def rename(self, salon: int) -> None:
        """Replace a salon; its name is the next number."""
        async with self.alone(facts.name(salon)) as fact:
            if fact is None:
                return
            new = booking_pb2.Salon(
                salon_id=salon_id(salon),
                phone_number_id=phone_number_id(salon),
                name=str(self.values.get(fact, 0) + 1),
                time_zone="Europe/Berlin",
            )
            if await self.write(self.services.booking, booking_pb2.UpsertSalonRequest(salon=new)):
                self.grown(fact)

    async def create_next(self, salon: int) -> None:
        """Make another booking of a customer."""
        customer = self.random.randrange(CUSTOMERS)
        taken = self.values.keys() | self.busy
        slot = next((s for s in range(SLOTS) if facts.booking(salon, customer, s) not in taken), None)
        if slot is not None:
            await self.create(salon, customer, slot)

    async def create(self, salon: int, customer: int, slot: int) -> None:
        """Make a booking."""
        async with self.alone(facts.booking(salon, customer, slot)) as fact:
            if fact is None:
                return
            start = self.minute(fact)
            request = booking_pb2.CreateBookingRequest(
                salon_id=salon_id(salon),
                customer_phone=phone(customer),
                start_time=day(0, start),
                end_time=day(0, start + 1),
            )
            if made := await self.write(self.services.booking, request):
                self.grown(fact, facts.moved(salon, 0))
                self.moves[fact] = self.steps[fact] = 0
                self.ledger.name_booking(fact, made.booking_code)

    async def reschedule(self, salon: int) -> None:
        """Move a booking to the next day."""
        movable = [fact for fact in self.of(salon) if self.steps[fact] < 2]
        async with self.alone(self.random.choice(movable)) as fact:
            if fact is None:
                return
            moves = self.moves[fact] + 1
            request = booking_pb2.RescheduleBookingRequest(
                salon_id=salon_id(salon),
                booking_code=self.ledger.code(fact),
                start_time=day(min(moves, PERIODS), self.minute(fact) + moves % 600),
            )
            if await self.write(self.services.booking, request):
                self.moves[fact] = moves
                self.grown(fact, *([facts.moved(salon, moves)] if moves < PERIODS else []))

    async def step(self, salon: int) -> None:
        """Confirm or complete a booking; every other one stays as it was made, so that there is always one to move."""
        movable = [fact for fact in self.of(salon) if self.steps[fact] < 2 and fact % 2]
        if not movable:
            return
        async with self.alone(self.random.choice(movable)) as fact:
            if fact is None:
                return
            statuses = booking_pb2.BOOKING_STATUS_CONFIRMED, booking_pb2.BOOKING_STATUS_COMPLETED
            request = booking_pb2.UpdateBookingStatusRequest(
                salon_id=salon_id(salon), booking_code=self.ledger.code(fact), status=statuses[self.steps[fact]]
            )
            if await self.write(self.services.booking, request):
                self.steps[fact] += 1
                self.grown(fact, facts.progress(salon))

    async def send(self, salon: int) -> None:
        """Record a message of a customer; its content is the next number."""
        customer = self.random.randrange(CUSTOMERS)
        async with self.alone(facts.messages(salon, customer)) as fact:
            if fact is None:
                return
            number = self.values.get(fact, 0) + 1
            request = messaging_pb2.RecordMessageRequest(
                salon_id=salon_id(salon),
                phone_number=phone(customer),
                direction=messaging_pb2.MESSAGE_DIRECTION_INBOUND,
                whatsapp_id=f"wamid.{customer}.{number}",
                content=str(number),
                send_time=day(-1000, number),
            )
            if await self.write([self.services.messaging], request):
                self.grown(fact)

    # What they stand on

    def of(self, salon: int) -> list[int]:
        """Return the bookings of a salon."""
        return [fact for fact in facts.bookings(salon, *range(CUSTOMERS)) if fact in self.moves]

    def minute(self, booking: int) -> int:
        """Return in which minute of a day a booking begins: it matters to nobody."""
        return booking % 600

    @asynccontextmanager
    async def alone(self, fact: int) -> AsyncIterator[int | None]:
        """Give a fact for the block, None if somebody has it."""
        if fact in self.busy:
            yield None
            return
        self.busy.add(fact)
        try:
            yield fact
        finally:
            self.busy.remove(fact)

    async def write(self, services: Sequence[Any], request: Any) -> Any:
        """Return the reply of a write; None if all ended before it was acknowledged."""
        request.request_id = str(UUID(int=self.random.getrandbits(128), version=4))
        rpc = type(request).__name__.removesuffix("Request")
        while not self.ledger.ending:
            try:
                return await getattr(self.random.choice(services), rpc)(request, timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                self.ledger.count_total("retried")
                if error.code() not in AWAY:
                    self.ledger.count_total("unexpected")
                    print(json.dumps({"rpc": rpc, "code": error.code().name, "details": error.details()}), flush=True)
            await asyncio.sleep(AWAY_SECONDS)
        return None

    def grown(self, *more: int) -> None:
        """Note that a write was acknowledged by which these facts grew by one."""
        now = time.monotonic_ns()
        for fact in more:
            self.values[fact] = self.values.get(fact, 0) + 1
            self.ledger.acknowledge(fact, self.values[fact], now)
        self.ledger.count_total("acknowledged")


if __name__ == "__main__":
    start(Writer)
