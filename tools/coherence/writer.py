"""The writers of one process.

Each object is written by one task only, one write after the other, so the writers know the version of each. A write
whose outcome is unknown is repeated with its request_id, at any process, until it is acknowledged.
"""

import asyncio
import hmac
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from uuid import UUID

import grpc

from ops.calls import ALWAYS
from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from tools.coherence.client import RETRY_SECONDS, SECRET, TIMEOUT_SECONDS, Client, chair, day, phone, request
from tools.coherence.state import CUSTOMERS, INDEX, LINES, PERIODS, SALONS, SLOTS, WRITERS, line_items

FIRST_BOOKINGS = 25  # of each customer, before the readers begin
PAUSE_SECONDS = 0.6  # after each write, on average
LONGEST_PAUSE_SECONDS = 5.0
MOST_IN_A_ROW = 5
MOST_IN_LINE = 4
HOUR = 3600
MINUTES = 20  # of each day for each booking of a customer
HOLD_EVERY, LONGEST_HOLD_SECONDS = 8, 10
STATUSES = booking_pb2.BOOKING_STATUS_CONFIRMED, booking_pb2.BOOKING_STATUS_CANCELLED


@dataclass
class Booking:
    """A booking: its item, how often it was moved, and how many of STATUSES it has had. A hold is only created."""

    item: int
    slot: int
    moves: int = 0
    statuses: int = 0


class Writer(Client):
    """The writers of every WRITERS-th salon: a task for each salon, and two for its customers."""

    async def run(self) -> None:
        """Write what the readers begin with, then write until the end."""
        self.bookings: dict[tuple[int, int], list[Booking]] = defaultdict(list)
        self.time_off: dict[tuple[int, int], str] = {}
        salons = range(self.process, SALONS, WRITERS)
        owned = [(salon, range(first, CUSTOMERS, 2)) for salon, first in product(salons, range(2))]
        for salon in salons:
            await self.rename(salon)
            await self.replace_service(salon)
            for customer in range(CUSTOMERS):
                await self.replace_resource(salon, customer)
            for line in LINES:
                await self.change_line(salon, line)
        await asyncio.gather(*(self.prepare(*each) for each in owned))
        self.state.count("ready")
        await asyncio.gather(*map(self.write_salon, salons), *(self.write_on(*each) for each in owned))

    async def prepare(self, salon: int, customers: Sequence[int]) -> None:
        """Create the conversations and the first bookings of customers."""
        for customer in customers:
            await self.send(salon, customer)
        for customer in list(customers) * FIRST_BOOKINGS:
            await self.create(salon, customer)

    async def write_on(self, salon: int, customers: Sequence[int]) -> None:
        """Write several times in a row, pause, and so on."""
        kinds = [
            *(self.create, self.move, self.move, self.change_status, self.update),
            *(self.send, self.send, self.answer, self.assign, self.replace_resource),
            *(self.opt_out, self.merge),
        ]
        while self.running:
            writes = self.random.randint(1, MOST_IN_A_ROW)
            for _ in range(writes):
                await self.random.choice(kinds)(salon, self.random.choice(customers))
            await self.pause(writes)

    async def write_salon(self, salon: int) -> None:
        """Write what belongs to the salon, one by one.

        What is read between two writes shows whether the second invalidates it. Most writes of a salon invalidate the
        same tags.
        """
        kinds = [self.rename, self.rename, self.replace_service, *[self.change_line] * len(LINES)]
        while self.running:
            await self.random.choice(kinds)(salon)
            await self.pause(1)

    async def pause(self, writes: int) -> None:
        """Pause after some writes."""
        pause = self.random.expovariate(1 / (PAUSE_SECONDS * writes))
        await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))

    async def rename(self, salon: int) -> None:
        """Replace a salon; its name is its version."""
        item, name = INDEX["name", salon], f"salon-{salon}"
        version = str(self.state.acknowledged(item) + 1)
        new = {"salon_id": name, "phone_number_id": f"10{salon}", "name": version, "time_zone": "Europe/Berlin"}
        await self.write("booking", "UpsertSalon", item, salon=new | {"opening_hours": ALWAYS})

    async def replace_service(self, salon: int) -> None:
        """Replace a service; its name is its version."""
        item = INDEX["service", salon]
        new = {"service_id": "cut", "name": str(self.state.acknowledged(item) + 1), "duration": {"seconds": 60}}
        await self.write("booking", "UpsertService", item, salon_id=f"salon-{salon}", **new)

    async def replace_resource(self, salon: int, customer: int) -> None:
        """Replace the resource of a customer; its name is its version."""
        item = INDEX["resource", salon, customer]
        new = {"resource_id": chair(customer), "name": str(self.state.acknowledged(item) + 1)}
        await self.write("booking", "UpsertResource", item, salon_id=f"salon-{salon}", **new)

    async def change_line(self, salon: int, line: str = "") -> None:
        """Create the next of a line, or delete the first; the name, or the reason, is the number."""
        line = line or self.random.choice(LINES)
        created, deleted = line_items(line, salon)
        first, last = self.state.ends(line, salon)
        deletes = last - first + 1 >= self.random.randint(2, MOST_IN_LINE)
        number = first if deletes else last + 1
        if line == "time off":
            period = {"start_time": day(-1000, number), "end_time": day(-1000, number + 1)}
            new = {"resource_id": chair(0), "reason": str(number), **period}
            old = {"time_off_id": self.time_off.pop((salon, number), "")}
            rpcs = "DeleteTimeOff", "CreateTimeOff"
        else:
            kind = line.removesuffix("s")
            old = {f"{kind}_id": f"extra-{number}"}
            new = old | {"name": str(number)} | ({"duration": {"seconds": 60}} if kind == "service" else {})
            rpcs = f"Delete{kind.capitalize()}", f"Upsert{kind.capitalize()}"
        rpc, item, fields = (rpcs[0], deleted, old) if deletes else (rpcs[1], created, new)
        reply = await self.write("booking", rpc, item, salon_id=f"salon-{salon}", **fields)
        if reply and rpc == "CreateTimeOff":
            self.time_off[salon, number] = reply.time_off.time_off_id

    async def create(self, salon: int, customer: int) -> None:
        """Create a booking, unless the customer has SLOTS, as if it had been moved; some are holds, which expire."""
        bookings = self.bookings[salon, customer]
        slot = len(bookings)
        if slot == SLOTS:
            return
        item = INDEX["booking", salon, customer, slot]
        new: dict[str, Any] = {"salon_id": f"salon-{salon}", "customer_phone": phone(customer)}
        moves = slot % PERIODS
        new |= {"start_time": day(moves, MINUTES * slot), "end_time": day(moves, MINUTES * slot + 1)}
        is_hold = slot % HOLD_EVERY == HOLD_EVERY - 1
        if is_hold:
            new["hold_duration"] = {"seconds": self.random.randint(1, LONGEST_HOLD_SECONDS)}
        items = item, *(INDEX["bookings moved", salon, times] for times in range(moves + 1))
        if made := await self.write("booking", "CreateBooking", *items, **new, resource_id=chair(customer)):
            bookings.append(Booking(item, slot, moves, statuses=len(STATUSES) if is_hold else 0))
            self.state.set_code(item, made.booking_code)

    async def move(self, salon: int, customer: int) -> None:
        """Move a booking to the next day."""
        booking = self.random.choice([each for each in self.bookings[salon, customer] if each.statuses < len(STATUSES)])
        moves = booking.moves + 1
        items = [booking.item, *([INDEX["bookings moved", salon, moves]] if moves <= PERIODS else [])]
        new = {"salon_id": f"salon-{salon}", "booking_code": self.state.code(booking.item)}
        start = day(min(moves, PERIODS), MINUTES * booking.slot + moves % MINUTES)
        if await self.write("booking", "RescheduleBooking", *items, **new, start_time=start):
            booking.moves = moves

    async def change_status(self, salon: int, customer: int) -> None:
        """Confirm or cancel a booking; half of them never change, so that there is always one to move."""
        bookings = [each for each in self.bookings[salon, customer] if each.statuses < len(STATUSES) and each.slot % 2]
        if not bookings:
            return
        booking = self.random.choice(bookings)
        items = booking.item, INDEX["status changes", salon]
        new = {"salon_id": f"salon-{salon}", "booking_code": self.state.code(booking.item)}
        status = STATUSES[booking.statuses]
        if await self.write("booking", "UpdateBookingStatus", *items, **new, status=status):
            booking.statuses += 1

    async def update(self, salon: int, customer: int) -> None:
        """Change the customer's name and the notes of a customer's first booking; both are their version."""
        booking, item = self.bookings[salon, customer][0], INDEX["notes", salon, customer]
        version = str(self.state.acknowledged(item) + 1)
        names = {"salon_id": f"salon-{salon}", "booking_code": self.state.code(booking.item)}
        new = names | {"customer_name": version, "notes": version}
        await self.write("booking", "UpdateBooking", booking.item, item, booking=new)

    async def send(self, salon: int, customer: int) -> None:
        """Record a message of a customer, also by a webhook body; its content is the version."""
        item = INDEX["message", salon, customer]
        version = self.state.acknowledged(item) + 1
        sent, whatsapp_id = self.sent(version), f"wamid.{customer}.{version}"
        if self.random.random() < 0.5:
            text = {"type": "text", "text": {"body": str(version)}}
            await self.ingest(_body(salon, customer, whatsapp_id, sent["seconds"], **text), item)
            return
        new = {"salon_id": f"salon-{salon}", "phone_number": phone(customer), "send_time": sent}
        content = {"whatsapp_id": whatsapp_id, "content": str(version)}
        direction = messaging_pb2.MESSAGE_DIRECTION_INBOUND
        await self.write("messaging", "RecordMessage", item, **new, **content, direction=direction)

    def sent(self, version: int) -> dict[str, int]:
        """Return when a message was sent: not in the future, and within the service window."""
        return {"seconds": self.spec.began - HOUR + version}

    async def opt_out(self, salon: int, customer: int) -> None:
        """Record an opt-out of a customer, or the opposite; the reason and the time are the version."""
        item = INDEX["opt-out", salon, customer]
        version = self.state.acknowledged(item) + 1
        new = {"salon_id": f"salon-{salon}", "phone_number": phone(customer), "opted_in": bool(version % 2)}
        await self.write("messaging", "RecordOptOut", item, **new, event_time={"seconds": version}, reason=str(version))

    async def merge(self, salon: int, customer: int) -> None:
        """Make a customer of a user ID, then record that it belongs to another one, in a message with its version."""
        items = INDEX["user IDs", salon, customer], INDEX["message", salon, customer]
        number, version = (self.state.acknowledged(item) + 1 for item in items)
        former, new = (f"DE.{customer}x{each}" for each in (number - 1, number))
        names = {"salon_id": f"salon-{salon}", "user_id": new}
        if not await self.write("messaging", "RecordOptOut", **names, event_time={"seconds": 0}):
            return
        whatsapp_id, sent = f"wamid.{customer}.{version}", self.sent(version)
        if number > 1:
            system = {"type": "user_changed_user_id", "user_id": new, "previous_user_id": former}
            notice = {"type": "system", "system": system | {"body": str(version)}}
            await self.ingest(_body(salon, customer, whatsapp_id, sent["seconds"], **notice), *items)
            return
        content = {**names, "whatsapp_id": whatsapp_id, "content": str(version), "phone_number": phone(customer)}
        direction = messaging_pb2.MESSAGE_DIRECTION_INBOUND
        await self.write("messaging", "RecordMessage", *items, **content, send_time=sent, direction=direction)

    async def ingest(self, payload: bytes, *items: int) -> None:
        """Record a webhook body."""
        signature = "sha256=" + hmac.new(SECRET.encode(), payload, "sha256").hexdigest()
        await self.write("messaging", "IngestWebhook", *items, payload=payload, signature=signature)

    async def answer(self, salon: int, customer: int) -> None:
        """Record an answer, then that it was sent; the number in its whatsapp_id is the version of what was sent."""
        item, sent = INDEX["message", salon, customer], INDEX["sent", salon, customer]
        version = self.state.acknowledged(item) + 1
        new: dict[str, Any] = {"salon_id": f"salon-{salon}", "phone_number": phone(customer), "content": str(version)}
        new |= {"direction": messaging_pb2.MESSAGE_DIRECTION_OUTBOUND, "type": messaging_pb2.MESSAGE_TYPE_TEMPLATE}
        if made := await self.write("messaging", "RecordMessage", item, **new, send_time=self.sent(version)):
            names = {"salon_id": made.salon_id, "message_id": made.message_id}
            whatsapp_id = f"wamid.sent.{customer}.{self.state.acknowledged(sent) + 1}"
            await self.write("messaging", "RecordMessageSent", sent, **names, whatsapp_id=whatsapp_id)

    async def assign(self, salon: int, customer: int) -> None:
        """Assign a customer's conversation; the assignee is the version."""
        item = INDEX["assignee", salon, customer]
        named = {"salon_id": f"salon-{salon}", "phone_number": phone(customer)}
        version = str(self.state.acknowledged(item) + 1)
        await self.write("messaging", "AssignConversation", item, **named, assignee=version)

    async def write(self, service: str, rpc: str, *items: int, **fields: Any) -> Any:
        """Write until it is acknowledged, which raises the versions of items; return the reply, None after the end."""
        new = request(service, rpc, **fields)
        if rpc != "IngestWebhook":  # which needs none
            new.request_id = str(UUID(int=self.random.getrandbits(128), version=4))
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


def _body(salon: int, customer: int, whatsapp_id: str, seconds: int, **content: Any) -> bytes:
    """Return a webhook body with a message."""
    item = {"from": phone(customer).removeprefix("+"), "id": whatsapp_id, "timestamp": str(seconds)}
    value = {"metadata": {"phone_number_id": f"10{salon}"}, "messages": [item | content]}
    return json.dumps({"entry": [{"changes": [{"field": "messages", "value": value}]}]}).encode()
