"""A bounded load on the three services: callers that repeat until the block ends, and the outcome of each call."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psycopg
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import RetryInfo

from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.ops.v1 import ops_pb2
from parlor.stats.v1 import stats_pb2
from tests.stack import PHONE, Failure, Stack, booking_request, message_request, read_failure, salon

DAY = 86_400
FIRST = 1_800_000_000  # start of the first booking, in s since 1970
LONGEST_LOAD_SECONDS = 60
STATS_BEHIND_SECONDS = 2  # REDIS_POLL is 1; the rest is for a busy machine

# Callers that run concurrently, each one call at a time.
Caller = Callable[["Load"], Awaitable[None]]


@dataclass(frozen=True)
class Call:
    """The outcome and the duration of one call; `source` is its x-cache."""

    method: str
    seconds: float
    source: str
    failure: Failure | None


class Load:
    """The calls made so far."""

    def __init__(self) -> None:
        """Begin without calls."""
        self.calls: list[Call] = []
        self.ending = False

    async def call(self, rpc: Any, request: Any) -> Any:
        """Make a call and record it; return its reply, None if it failed. A failure without our details raises."""
        began, call = time.monotonic(), rpc(request, timeout=30)
        reply, failure, source = None, None, ""
        try:
            reply = await call
            source = str(dict(await call.trailing_metadata()).get("x-cache", ""))
        except grpc.aio.AioRpcError as error:
            failure = read_failure(error)
        method = type(request).__name__.removesuffix("Request")
        self.calls.append(Call(method, time.monotonic() - began, source, failure))
        return reply

    @property
    def failed(self) -> list[Call]:
        """The calls that failed."""
        return [call for call in self.calls if call.failure]

    @property
    def answered(self) -> int:
        """The number of calls answered with OK."""
        return len(self.calls) - len(self.failed)

    def hits(self, begin: int = 0) -> int:
        """Return the number of hits among the calls from number `begin` on."""
        return sum(call.source in ("hit", "near") for call in self.calls[begin:])

    async def until_answered(self, count: int) -> None:
        """Wait until `count` more calls have been answered with OK."""
        target = self.answered + count
        await until(lambda: self.answered >= target)

    async def until_failed(self, count: int) -> None:
        """Wait until `count` more calls have failed."""
        target = len(self.failed) + count
        await until(lambda: len(self.failed) >= target)


@asynccontextmanager
async def running_load(callers: Sequence[Caller]) -> AsyncIterator[Load]:
    """Run each caller repeatedly until the block ends; an exception of a caller ends the block."""
    load = Load()

    async def repeat(caller: Caller) -> None:
        while not load.ending:
            await caller(load)

    async with asyncio.timeout(LONGEST_LOAD_SECONDS), asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(repeat(caller))
        try:
            yield load
        finally:
            load.ending = True


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 20) -> None:
    """Wait until the condition holds. Raises: TimeoutError."""
    async with asyncio.timeout(seconds):
        while not (held if isinstance(held := condition(), bool) else await held):  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.01)


async def all_connected(stack: Stack) -> bool:
    """Return whether every service uses Valkey."""
    request = ops_pb2.GetCacheStatisticsRequest()
    replies = await asyncio.gather(*(ops.GetCacheStatistics(request) for ops in stack.ops.values()))
    return all(reply.redis.connected for reply in replies)


async def waiting_for_a_lock(database_url: str, count: int) -> bool:
    """Return whether `count` sessions of the database wait for a lock."""
    query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with await psycopg.AsyncConnection.connect(database_url) as conn:
        return (await conn.execute(query)).rowcount == count


class Writer:
    """Writes to one salon, and reads after each acknowledged write: the reply must show it."""

    def __init__(self, stack: Stack, salon_id: str) -> None:
        """Begin without writes."""
        self.stack = stack
        self.salon_id = salon_id
        self.number = 0

    async def prepare(self) -> None:
        """Create the salon and its conversation."""
        await salon(self.stack, self.salon_id)
        await self.stack.messaging.RecordMessage(message_request("first", salon_id=self.salon_id))

    async def __call__(self, load: Load) -> None:
        """Make each kind of write, and the reads that must show it."""
        self.number += 1
        await self.rename(load)
        await self.book(load)
        await self.write_message(load)

    async def rename(self, load: Load) -> None:
        """Replace the salon."""
        name = f"name {self.number}"
        new = booking_pb2.Salon(
            salon_id=self.salon_id, phone_number_id=f"10{self.salon_id}", name=name, time_zone="Europe/Berlin"
        )
        if await load.call(self.stack.booking.UpsertSalon, booking_pb2.UpsertSalonRequest(salon=new)):
            read = booking_pb2.GetSalonRequest(salon_id=self.salon_id)
            await self.see(load, self.stack.booking.GetSalon, read, lambda reply: reply.name == name)

    async def book(self, load: Load) -> None:
        """Create a booking and confirm it."""
        start, booking = FIRST + self.number * DAY, self.stack.booking
        listing = booking_pb2.ListBookingsRequest(
            salon_id=self.salon_id, start_time=Timestamp(seconds=start), end_time=Timestamp(seconds=start + 1)
        )
        # Caches the state before the write.
        await load.call(booking.ListBookings, listing)
        created = await load.call(booking.CreateBooking, booking_request(start, salon_id=self.salon_id))
        if created is None:
            return
        codes = [created.booking_code]
        await self.see(load, booking.ListBookings, listing, lambda r: [b.booking_code for b in r.bookings] == codes)
        await self.see_statistics(load, listing)
        read = booking_pb2.GetBookingByCodeRequest(salon_id=self.salon_id, booking_code=created.booking_code)
        await self.see(load, booking.GetBookingByCode, read, lambda reply: reply == created)
        confirm = booking_pb2.UpdateBookingStatusRequest(
            salon_id=self.salon_id, booking_code=created.booking_code, status=booking_pb2.BOOKING_STATUS_CONFIRMED
        )
        if confirmed := await load.call(booking.UpdateBookingStatus, confirm):
            await self.see(load, booking.GetBookingByCode, read, lambda reply: reply == confirmed)

    async def see_statistics(self, load: Load, listing: Any) -> None:
        """Expect one booking: at once, or within a `poll` while booking has no Redis but stats does."""
        stats = self.stack.stats
        request = stats_pb2.GetSalonStatsRequest(
            salon_id=self.salon_id, start_time=listing.start_time, end_time=listing.end_time
        )

        async def is_shown() -> bool:
            reply = await load.call(stats.GetSalonStats, request)
            return reply is None or reply.bookings == 1

        await until(is_shown, STATS_BEHIND_SECONDS)
        await self.see(load, stats.GetSalonStats, request, lambda reply: reply.bookings == 1)

    async def write_message(self, load: Load) -> None:
        """Record a message of the conversation."""
        content, messaging = f"message {self.number}", self.stack.messaging
        message = message_request(f"wamid.{self.number}", salon_id=self.salon_id, content=content)
        if await load.call(messaging.RecordMessage, message):
            conversation = messaging_pb2.GetConversationRequest(salon_id=self.salon_id, phone_number=PHONE)
            await self.see(
                load, messaging.GetConversation, conversation, lambda reply: reply.messages[0].content == content
            )
            listing = messaging_pb2.ListMessagesRequest(salon_id=self.salon_id, page_size=1)
            await self.see(load, messaging.ListMessages, listing, lambda reply: reply.messages[0].content == content)

    async def see(self, load: Load, rpc: Any, request: Any, shows: Callable[[Any], bool]) -> None:
        """Read twice, the second time possibly from the cache: both replies must show the write."""
        for _ in range(2):
            reply = await load.call(rpc, request)
            assert reply is None or shows(reply), f"stale: {request}: {reply}"


def tells_when_to_retry(failure: Failure) -> bool:
    """Return whether a failure has both a RetryInfo for clients and a pushback for gRPC."""
    return failure.has(RetryInfo) and int(failure.trailing["grpc-retry-pushback-ms"]) > 0
