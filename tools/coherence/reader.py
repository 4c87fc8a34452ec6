"""The readers of one process, and the reads that they check."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.stats.v1 import stats_pb2
from tools.coherence.client import DAY, RETRY_SECONDS, TIMEOUT_SECONDS, Client, chair, day, phone, request
from tools.coherence.state import CUSTOMERS, INDEX, ITEMS, PERIODS, SALONS, SERVICES, WRITERS, line_items

AT_ONCE = 3  # reads of this process under way at each service
PAUSE_SECONDS = 0.005
BATCH = 100
LONGEST_PAGE = 200
LAST_DAY = 3000
NS = 1_000_000  # of a ms


class Read(NamedTuple):
    """The fields of a request, the items that it asks for, and which version of each a reply shows.

    `not_found` is what NOT_FOUND shows; by default version 0 of each.
    """

    fields: dict[str, Any]
    items: Sequence[int]
    shown: Callable[[Any], Sequence[int]]
    not_found: Sequence[int] = ()


class Reader(Client):
    """Readers of all salons, more often of their first customers and bookings than of their last."""

    async def run(self) -> None:
        """Read until the end, once there is something to read."""
        while self.state.total("ready") < WRITERS:  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(RETRY_SECONDS)
        self.state.count("ready")
        reads = [(name, stub) for name, stubs in self.stubs.items() for stub in stubs]
        await asyncio.gather(*(self.read_on(name, stub) for name, stub in reads * AT_ONCE))

    async def read_on(self, service: str, stub: Any) -> None:
        """Make one read after another at a service."""
        while self.running:
            rpc = self.random.choice(SERVICES[service])
            salon = self.random.randrange(SALONS)
            read: Read = getattr(self, rpc)(salon)
            salon_id = {} if rpc == "GetSalonByPhoneNumberId" else {"salon_id": f"salon-{salon}"}
            new = request(service, rpc, **salon_id, **read.fields)
            answered = await self.make(rpc, getattr(stub, rpc), new, read)
            await asyncio.sleep(PAUSE_SECONDS if answered else RETRY_SECONDS)

    async def make(self, rpc: str, call: Any, new: Any, read: Read) -> bool:
        """Make a read and check it; return whether it was answered."""
        state = self.state
        known = [state.known(item) for item in read.items]
        least = known if self.spec.is_shown_final else [state.acknowledged(item) for item in read.items]
        began, source = time.monotonic_ns(), ""
        state.count((rpc, "rpcs"))
        try:
            reply = call(new, timeout=TIMEOUT_SECONDS)
            shown = read.shown(await reply)
            source = str(dict(await reply.trailing_metadata())["x-cache"])
            state.count((rpc, source))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                state.count((rpc, "failed"))
                self.failed(rpc, error)
                return False
            shown = read.not_found or [0] * len(read.items)  # a wrong negative answer is stale, too
        state.count((rpc, "reads"), len(shown) if rpc == "BatchGetBookings" else 1)
        self.check(rpc, read.items, least, shown, source, began)
        if any(low <= version < high for low, version, high in zip(least, shown, known, strict=True)):
            state.count((rpc, "split"))
        return True

    def check(
        self, rpc: str, items: Sequence[int], least: Sequence[int], shown: Sequence[int], source: str, began: int
    ) -> None:
        """Compare the versions that a reply shows with the least that it must."""
        bound_ms = self.spec.behind_ms + (self.spec.near_ms if source == "near" else 0)
        stale = False
        for item, wanted, version in zip(items, least, shown, strict=True):
            self.state.see(item, version)
            if version >= wanted:
                continue
            age_ns = self.state.age_ns(item, version, began)
            self.state.note_age(age_ns)
            if age_ns > bound_ms * NS or not bound_ms:
                stale = True
                versions = {"shown": version, "known": wanted, "acknowledged": self.state.acknowledged(item)}
                self.found(rpc, item=ITEMS[item], **versions, age_ms=age_ns / NS, source=source, at=time.time())
        if stale:
            self.state.count((rpc, "stale"))

    def GetSalon(self, salon: int) -> Read:
        """Read a salon's name."""
        return Read({}, [INDEX["name", salon]], lambda reply: [int(reply.name)])

    def GetSalonByPhoneNumberId(self, salon: int) -> Read:
        """Read a salon's name by its other key."""
        return Read({"phone_number_id": f"10{salon}"}, [INDEX["name", salon]], lambda reply: [int(reply.name)])

    def GetBookingByCode(self, salon: int) -> Read:
        """Read a booking's revision; of a customer's first one also the fields that UpdateBooking changes."""
        item = self._booking(salon)
        _, _, customer, slot = ITEMS[item]
        items = [item] if slot else [item, INDEX["notes", salon, customer]]

        def shown(reply: Any) -> list[int]:
            return [reply.revision, min(int(reply.notes or 0), int(reply.customer_name or 0))][: len(items)]

        return Read({"booking_code": self.state.code(item)}, items, shown)

    def BatchGetBookings(self, salon: int) -> Read:
        """Read the revisions of up to 100 bookings."""
        items = self.state.bookings(salon, range(CUSTOMERS))[:BATCH]
        codes = [self.state.code(item) for item in items]
        return Read({"booking_codes": codes}, items, lambda reply: [each.revision for each in reply.bookings])

    def ListBookings(self, salon: int) -> Read:
        """List a customer's bookings, each with a separate resource; none may be missing. Or those of days."""
        if self.random.random() < 0.5:
            return self._bookings_of_days(salon)
        customer = self._low(CUSTOMERS)
        of_customer, of_resource = {"customer_phone": phone(customer)}, {"resource_ids": [chair(customer)]}
        filters: dict[str, Any] = self.random.choice(
            [
                of_customer,
                of_resource,
                of_resource | {"statuses": booking_pb2.BookingStatus.values()[1:]},
                of_customer | {"overlapping": {"start_time": day(0), "end_time": day(LAST_DAY)}},
                of_resource | {"updated_since": {"seconds": self.spec.began - DAY}, "order_by": "update_time"},
            ]
        )
        items = self.state.bookings(salon, [customer])
        codes = [self.state.code(item) for item in items]

        def shown(reply: Any) -> list[int]:
            revisions = {booking.booking_code: booking.revision for booking in reply.bookings}
            return [revisions.get(code, 0) for code in codes]

        return Read(filters | {"page_size": LONGEST_PAGE}, items, shown)

    def _bookings_of_days(self, salon: int) -> Read:
        """List the bookings that were moved to a day, or a week. None leaves the last day.

        A booking that has left and is still listed has an old revision.
        """
        times = self.random.randrange(PERIODS + 1)
        codes = {self.state.code(item): item for item in self.state.bookings(salon, range(CUSTOMERS))}
        moved = [INDEX["bookings moved", salon, times]][: times == PERIODS]

        def shown(reply: Any) -> list[int]:
            revisions = {booking.booking_code: booking.revision for booking in reply.bookings}
            count = self.state.known(moved[0]) if reply.next_page_token and moved else len(revisions)
            known = [revisions.get(code, self.state.known(item)) for code, item in codes.items()]
            return [*known, *[count for _ in moved]]

        end = {"seconds": day(times)["seconds"] + self.random.choice((1, 7)) * DAY}
        fields = {"start_time": day(times), "end_time": end, "page_size": LONGEST_PAGE}
        return Read(fields, [*codes.values(), *moved], shown)

    def ListBookingEvents(self, salon: int) -> Read:
        """List the history of a booking, which has an event for each revision."""
        item = self._booking(salon)

        def shown(reply: Any) -> list[int]:
            return [self.state.known(item) if reply.next_page_token else len(reply.booking_events)]

        return Read({"booking_code": self.state.code(item), "page_size": LONGEST_PAGE}, [item], shown)

    def GetService(self, salon: int) -> Read:
        """Read a service's name, or a service that was deleted last or will be next."""
        if self.random.random() < 0.5:
            return Read({"service_id": "cut"}, [INDEX["service", salon]], lambda reply: [int(reply.name)])
        number = self.state.ends("services", salon)[0] - self.random.randrange(2)
        _, deleted = line_items("services", salon)
        return Read({"service_id": f"extra-{number}"}, [deleted], lambda _: [number - 1], [number])

    def ListServices(self, salon: int) -> Read:
        """List services: one that is replaced, and the line."""
        items = INDEX["service", salon], *line_items("services", salon)
        fields = {"active_only": self.random.random() < 0.5}
        return Read(fields, items, lambda reply: _listed({one.service_id: one.name for one in reply.services}, "cut"))

    def ListResources(self, salon: int) -> Read:
        """List resources: those of the customers, which are replaced, and the line."""
        chairs = [chair(customer) for customer in range(CUSTOMERS)]
        items = [INDEX["resource", salon, customer] for customer in range(CUSTOMERS)]

        def shown(reply: Any) -> list[int]:
            return _listed({each.resource_id: each.name for each in reply.resources}, *chairs)

        fields = {"active_only": self.random.random() < 0.5}
        return Read(fields, [*items, *line_items("resources", salon)], shown)

    def ListTimeOff(self, salon: int) -> Read:
        """List time off."""
        period = {"start_time": day(-1001), "end_time": day(0)}
        fields: dict[str, Any] = self.random.choice([{}, {"resource_id": chair(0)}, period])
        items = line_items("time off", salon)
        return Read(fields, items, lambda reply: _listed({each.time_off_id: each.reason for each in reply.time_off}))

    def GetSalonStats(self, salon: int) -> Read:
        """Count the bookings that were moved at least so many times."""
        times = self._low(PERIODS)
        fields = {"start_time": day(times), "end_time": day(LAST_DAY)}
        return Read(fields, [INDEX["bookings moved", salon, times]], lambda reply: [reply.bookings])

    def ListBookingStats(self, salon: int) -> Read:
        """Count the changes of all bookings' status."""
        began = self.spec.began
        period = {"start_time": {"seconds": began - DAY}, "end_time": {"seconds": began + 10 * DAY}}

        def shown(reply: Any) -> list[int]:
            return [sum(bucket.confirmed + 2 * bucket.cancelled for bucket in reply.booking_stats)]

        return Read({**period, "bucket": stats_pb2.TIME_BUCKET_MONTH}, [INDEX["status changes", salon]], shown)

    def GetConversation(self, salon: int) -> Read:
        """Read a conversation's assignee and newest message."""
        customer = self._low(CUSTOMERS)
        items = [INDEX[what, salon, customer] for what in ("assignee", "message")]
        fields = {"phone_number": phone(customer), "message_limit": 1}
        return Read(fields, items, lambda reply: [int(reply.assignee or 0), *_newest(reply)])

    def ListConversations(self, salon: int) -> Read:
        """List the conversations of all customers with their assignees and last messages."""
        filters: list[dict[str, Any]] = [{}, {"statuses": [1, 2, 3]}, {"unread_only": True}, {"window_open": True}]
        items = [INDEX[what, salon, customer] for what in ("assignee", "message") for customer in range(CUSTOMERS)]

        def shown(reply: Any) -> list[int]:
            rows = {row.phone_number: row for row in reply.conversations}
            listed = [rows.get(phone(customer)) for customer in range(CUSTOMERS)]
            assignees = [int(row.assignee or 0) if row else 0 for row in listed]
            return [*assignees, *(int(row.last_message.content) if row else 0 for row in listed)]

        return Read(self.random.choice([*filters, {"query": phone(0)[:4]}]), items, shown)

    def GetCustomer(self, salon: int) -> Read:
        """Read a customer's opt-out, and how many user IDs they have."""
        customer = self._low(CUSTOMERS)
        items = [INDEX[what, salon, customer] for what in ("opt-out", "user IDs")]
        return Read({"phone_number": phone(customer)}, items, lambda reply: _said(reply))

    def ListCustomers(self, salon: int) -> Read:
        """List the customers, also those that are not merged yet."""
        items = [INDEX[what, salon, customer] for customer in range(CUSTOMERS) for what in ("opt-out", "user IDs")]

        def shown(reply: Any) -> list[int]:
            rows = {number: row for row in reply.customers for number in row.phone_numbers}
            return [number for customer in range(CUSTOMERS) for number in _said(rows.get(phone(customer)))]

        return Read(self.random.choice([{}, {"query": phone(0)[:4]}]), items, shown)

    def SearchMessages(self, salon: int) -> Read:
        """Search for the newest message of a customer, whose text is its version."""
        customer = self._low(CUSTOMERS)
        item = INDEX["message", salon, customer]
        version = self.state.known(item)

        def shown(reply: Any) -> list[int]:
            found = {(message.phone_number, message.content) for message in reply.messages}
            return [self.state.known(item) if (phone(customer), str(version)) in found else version - 1]

        return Read({"query": str(version)}, [item], shown)

    def ListMessages(self, salon: int) -> Read:
        """Read the newest message of a customer, or the newest two answers: the last may not be sent yet."""
        customer = self._low(CUSTOMERS)
        fields: dict[str, Any] = {"phone_number": phone(customer), "page_size": 1}
        if self.random.random() < 0.5:
            return Read(fields, [INDEX["message", salon, customer]], _newest)
        answers = {"page_size": 2, "direction": messaging_pb2.MESSAGE_DIRECTION_OUTBOUND}
        return Read(fields | answers, [INDEX["sent", salon, customer]], _sent)

    def _low(self, end: int) -> int:
        return int(end * self.random.random() ** 2)

    def _booking(self, salon: int) -> int:
        """Return a booking that has a code."""
        items = self.state.bookings(salon, [self._low(CUSTOMERS)])
        return items[int(len(items) * self.random.random() ** 6)]


def _said(customer: Any) -> list[int]:
    """Return the version of a customer's opt-out, and the number of their user IDs."""
    return [int(customer.opt_out_reason or 0), len(customer.user_ids)] if customer else [0, 0]


def _listed(names: dict[str, str], *replaced: str) -> list[int]:
    """Return the names of `replaced` things, their versions, and how many of a line were created and deleted."""
    versions = [int(names.pop(each, 0)) for each in replaced]
    line = [*map(int, names.values())]
    return [*versions, max(line, default=0), min(line, default=1) - 1]


def _newest(reply: Any) -> list[int]:
    return [int(message.content) for message in reply.messages] or [0]


def _sent(reply: Any) -> list[int]:
    """Return the number in the last whatsapp_id of answers."""
    return [max((int(each.whatsapp_id.rpartition(".")[2]) for each in reply.messages if each.whatsapp_id), default=0)]
