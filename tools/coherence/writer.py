"""The writers of one process.

Each object is written by one task only, one write after the other, so the writers know the version of each. A write
whose outcome is unknown is repeated with its request_id, at any process, until it is acknowledged.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from uuid import UUID

import grpc

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from tools.coherence.client import RETRY_SECONDS, TIMEOUT_SECONDS, Client, day, phone, request
from tools.coherence.state import CUSTOMERS, INDEX, PERIODS, SALONS, SLOTS, WRITERS

FIRST_BOOKINGS = 25  # of each customer, before the readers begin
PAUSE_SECONDS = 0.6  # after each write, on average
LONGEST_PAUSE_SECONDS = 5.0
MOST_IN_A_ROW = 5
STATUSES = booking_pb2.BOOKING_STATUS_CONFIRMED, booking_pb2.BOOKING_STATUS_COMPLETED


@dataclass
class Booking:
    """A booking: its item, how often it was moved, and how many of STATUSES it has had."""

    item: int
    moves: int = 0
    statuses: int = 0


class Writer(Client):
    """The writers of every WRITERS-th salon: two tasks for each salon, one for every other customer."""

    async def run(self) -> None:
        """Write what the readers begin with, then write until the end."""
        self.bookings: dict[tuple[int, int], list[Booking]] = defaultdict(list)
        salons = range(self.process, SALONS, WRITERS)
        owned = [(salon, range(first, CUSTOMERS, 2)) for salon, first in product(salons, range(2))]
        for salon in salons:
            await self.rename(salon)
        await asyncio.gather(*(self.prepare(*each) for each in owned))
        self.state.count("ready")
        await asyncio.gather(*(self.write_on(*each) for each in owned))

    async def prepare(self, salon: int, customers: Sequence[int]) -> None:
        """Create the first bookings of customers."""
        for customer in list(customers) * FIRST_BOOKINGS:
            await self.create(salon, customer)

    async def write_on(self, salon: int, customers: Sequence[int]) -> None:
        """Write several times in a row, pause, and so on."""
        kinds = [self.create, self.move, self.move, self.change_status, self.send, self.send]
        while self.running:
            writes = self.random.randint(1, MOST_IN_A_ROW)
            for _ in range(writes):
                await self.random.choice(kinds)(salon, self.random.choice(customers))
                if 0 in customers and self.random.random() < 0.3:
                    await self.rename(salon)
            pause = self.random.expovariate(1 / (PAUSE_SECONDS * writes))
            await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))

    async def rename(self, salon: int) -> None:
        """Replace a salon; its name is its version."""
        item, name = INDEX["name", salon], f"salon-{salon}"
        version = str(self.state.acknowledged(item) + 1)
        new = {"salon_id": name, "phone_number_id": f"10{salon}", "name": version, "time_zone": "Europe/Berlin"}
        await self.write("booking", "UpsertSalon", item, salon=new)

    async def create(self, salon: int, customer: int) -> None:
        """Create a booking, unless the customer has SLOTS."""
        bookings = self.bookings[salon, customer]
        if len(bookings) == SLOTS:
            return
        item = INDEX["booking", salon, customer, len(bookings)]
        new = {"salon_id": f"salon-{salon}", "customer_phone": phone(customer)}
        period = {"start_time": day(0, item % 600), "end_time": day(0, item % 600 + 1)}
        items = item, INDEX["bookings moved", salon, 0]
        if made := await self.write("booking", "CreateBooking", *items, **new, **period):
            bookings.append(Booking(item))
            self.state.set_code(item, made.booking_code)

    async def move(self, salon: int, customer: int) -> None:
        """Move a booking to the next day."""
        booking = self.random.choice([each for each in self.bookings[salon, customer] if each.statuses < 2])
        moves = booking.moves + 1
        items = [booking.item, *([INDEX["bookings moved", salon, moves]] if moves < PERIODS else [])]
        new = {"salon_id": f"salon-{salon}", "booking_code": self.state.code(booking.item)}
        start = day(min(moves, PERIODS), booking.item % 600 + moves % 600)
        if await self.write("booking", "RescheduleBooking", *items, **new, start_time=start):
            booking.moves = moves

    async def change_status(self, salon: int, customer: int) -> None:
        """Confirm or complete a booking; half of them never change, so that there is always one to move."""
        bookings = [each for each in self.bookings[salon, customer] if each.statuses < 2 and each.item % 2]
        if not bookings:
            return
        booking = self.random.choice(bookings)
        items = booking.item, INDEX["status changes", salon]
        new = {"salon_id": f"salon-{salon}", "booking_code": self.state.code(booking.item)}
        status = STATUSES[booking.statuses]
        if await self.write("booking", "UpdateBookingStatus", *items, **new, status=status):
            booking.statuses += 1

    async def send(self, salon: int, customer: int) -> None:
        """Record a message of a customer; its content is the version."""
        item = INDEX["message", salon, customer]
        version = self.state.acknowledged(item) + 1
        new = {"salon_id": f"salon-{salon}", "phone_number": phone(customer), "send_time": day(-1000, version)}
        content = {"whatsapp_id": f"wamid.{customer}.{version}", "content": str(version)}
        direction = messaging_pb2.MESSAGE_DIRECTION_INBOUND
        await self.write("messaging", "RecordMessage", item, **new, **content, direction=direction)

    async def write(self, service: str, rpc: str, *items: int, **fields: Any) -> Any:
        """Write until it is acknowledged, which raises the versions of items; return the reply, None after the end."""
        request_id = str(UUID(int=self.random.getrandbits(128), version=4))
        new = request(service, rpc, **fields, request_id=request_id)
        while self.running:
            try:
                reply = await getattr(self.random.choice(self.stubs[service]), rpc)(new, timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                self.state.count("retried")
                self.failed(rpc, error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            now = time.monotonic_ns()
            for item in items:
                self.state.acknowledge(item, now)
            self.state.count("acknowledged")
            return reply
        return None
