"""The feeds of changes while the service and Postgres crash: nothing lost, everything in order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
import psycopg
import pytest

from ops.process import free_ports
from ops.servers import Postgres
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2, messaging_pb2_grpc
from tests.feed import change_of, feed_rpcs
from tests.load import until
from tests.stack import PHONE, booking_request, message_request, quiet, rows

WRITERS = 20
SALONS = [f"salon-{number}" for number in range(4)]
CRASHES = 4
CRASH_SECONDS = 1.5
DEADLINE_SECONDS = 2
XMIN = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
STUBS: dict[str, Any] = {
    "booking": booking_pb2_grpc.BookingServiceStub,
    "messaging": messaging_pb2_grpc.MessagingServiceStub,
}
PREPARE = {
    "booking": "INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('{0}', '{0}', 'S', 'UTC')",
    "messaging": "INSERT INTO conversations (salon_id, phone_number) VALUES ('{0}', '{1}')",
}
MICROS = "(extract(epoch FROM created_at) * 1000000)::bigint"
ALL = {
    "booking": "SELECT salon_id, booking_code, revision FROM booking_changes ORDER BY xact_id, seq",
    "messaging": f"SELECT salon_id, type, coalesce(message_id::text, ''), {MICROS} FROM message_changes"
    " ORDER BY xact_id, seq",
}

Key: TypeAlias = tuple[Any, ...]
Seen: TypeAlias = list[Key]


class Callers:
    """Writers and readers of a feed, who go on after each error; `acknowledged` has what the writers were told."""

    def __init__(self, service: str, channel: grpc.aio.Channel) -> None:
        """Begin with nothing."""
        self.service = service
        self.stub = STUBS[service](channel)
        self.list, self.list_request, self.stream, self.stream_request = feed_rpcs(self.stub)
        self.acknowledged: Seen = []
        self.failures = 0
        self.writing = True

    async def call(self, rpc: Any, request: Any) -> Any:
        """Repeat a call until it is answered."""
        while True:
            try:
                return await rpc(request, timeout=DEADLINE_SECONDS)
            except grpc.aio.AioRpcError as error:
                assert error.code().name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"), error
                self.failures += 1
                await asyncio.sleep(0.05)

    async def write(self, number: int) -> None:
        """Write until told to stop."""
        while self.writing:
            await (self.book if self.service == "booking" else self.send)(SALONS[number % len(SALONS)])
            await asyncio.sleep(0.05)

    async def book(self, salon_id: str) -> None:
        """Create a booking, confirm and cancel it."""
        request = booking_request(salon_id=salon_id, request_id=str(uuid4()))
        booking = await self.call(self.stub.CreateBooking, request)
        self.acknowledged.append((salon_id, booking.booking_code, booking.revision))
        for status in (pb.BOOKING_STATUS_CONFIRMED, pb.BOOKING_STATUS_CANCELLED):
            update = pb.UpdateBookingStatusRequest(
                salon_id=salon_id, booking_code=booking.booking_code, status=status, request_id=str(uuid4())
            )
            booking = await self.call(self.stub.UpdateBookingStatus, update)
            self.acknowledged.append((salon_id, booking.booking_code, booking.revision))

    async def send(self, salon_id: str) -> None:
        """Record a message, two statuses of it, and that the conversation was read."""
        whatsapp_id = f"wamid.{uuid4()}"
        template = {"direction": "MESSAGE_DIRECTION_OUTBOUND", "type": "MESSAGE_TYPE_TEMPLATE"}
        request = message_request(whatsapp_id, salon_id=salon_id, **template)
        message = await self.call(self.stub.RecordMessage, request)
        self.acknowledged.append((salon_id, "MESSAGE_CREATED", message.message_id))
        for status in ("SENT", "READ"):
            update = messaging_pb2.RecordMessageStatusRequest(salon_id=salon_id, whatsapp_id=whatsapp_id)
            update.status = messaging_pb2.MessageStatus.Value(f"MESSAGE_STATUS_{status}")
            await self.call(self.stub.RecordMessageStatus, update)
            self.acknowledged.append((salon_id, "MESSAGE_UPDATED", message.message_id))
        assign = messaging_pb2.AssignConversationRequest(salon_id=salon_id, phone_number=PHONE, assignee=whatsapp_id)
        await self.call(self.stub.AssignConversation, assign)
        self.acknowledged.append((salon_id, "CONVERSATION_UPDATED", ""))

    async def watch(self, salon_id: str, token: str, seen: Seen) -> None:
        """Note each change of a stream; come back with the last token when it ends."""
        while True:
            call = self.stream(self.stream_request(salon_id=salon_id, page_token=token))
            try:
                async for reply in call:
                    if (change := change_of(reply)) is not None:
                        seen.append(self.key(change))
                    token = reply.page_token
            except grpc.aio.AioRpcError as error:
                assert error.code().name == "UNAVAILABLE", error
                await asyncio.sleep(0.05)

    async def sync(self, token: str, seen: Seen) -> None:
        """Note the changes of pages of 7."""
        while True:
            page = await self.call(self.list, self.list_request(page_size=7, page_token=token))
            changes = getattr(page, page.DESCRIPTOR.fields_by_number[1].name)
            seen += map(self.key, changes)
            token = page.next_page_token
            if len(changes) < 7:
                await asyncio.sleep(0.05)

    async def token(self, salon_id: str) -> str:
        """Return the token of all changes from now on."""
        return str((await self.call(self.list, self.list_request(salon_id=salon_id))).next_page_token)

    def key(self, change: Any) -> Key:
        """Return what identifies a change."""
        if self.service == "booking":
            return change.salon_id, change.booking_code, change.revision
        kind = messaging_pb2.MessageChangeType.Name(change.type).removeprefix("MESSAGE_CHANGE_TYPE_")
        return change.salon_id, kind, change.message_id, change.create_time.ToMicroseconds()


@asynccontextmanager
async def until_the_end(*running: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run readers until the block ends; what one of them raises ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in running]
        yield
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("name", ["booking", "messaging"])
async def test_every_change_is_seen_in_order_through_crashes(
    own_postgres: Postgres, redis_url: str, tmp_path: Path, name: str
) -> None:
    port, metrics_port = free_ports(2)
    plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, port), metrics_port)
    service = Service(name, port, tmp_path / f"{name}.log", environments(plan, own_postgres.dsn, redis_url)[name])
    crashes: list[Callable[[], Any]] = [service.kill, own_postgres.kill]
    starts: list[Callable[[], Any]] = [service.start, own_postgres.start]
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    for salon_id in SALONS:
        rows(own_postgres.dsn, PREPARE[name].format(salon_id, PHONE) + " RETURNING 1")
    async with asyncio.timeout(120), grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        with service:
            callers = Callers(name, channel)
            tokens = {each: await callers.token(each) for each in ("", SALONS[0])}
            everything: list[Seen] = [[], [], []]
            of_one: Seen = []
            async with until_the_end(
                callers.watch("", tokens[""], everything[0]),
                callers.watch("", tokens[""], everything[1]),
                callers.watch(SALONS[0], tokens[SALONS[0]], of_one),
                callers.sync(tokens[""], everything[2]),
            ):
                writers = [asyncio.create_task(callers.write(number)) for number in range(WRITERS)]
                for number in range(CRASHES):
                    await asyncio.sleep(CRASH_SECONDS)
                    await asyncio.to_thread(crashes[number % 2])
                    await asyncio.to_thread(starts[number % 2])
                await asyncio.sleep(CRASH_SECONDS)
                callers.writing = False
                await asyncio.gather(*writers)
                truth: Seen = rows(own_postgres.dsn, ALL[name])
                mine = [each for each in truth if each[0] == SALONS[0]]
                await until(lambda: all(len(set(seen)) >= len(truth) for seen in everything))
                await until(lambda: len(set(of_one)) >= len(mine))
    print(f"{name}: {len(truth)} changes, {callers.failures} failed calls, seen {[len(seen) for seen in everything]}")
    assert callers.failures > 0
    assert set(callers.acknowledged) <= {each[:3] for each in truth}
    assert len(truth) > 20 * WRITERS
    assert list(dict.fromkeys(of_one)) == mine
    for seen in everything:
        assert list(dict.fromkeys(seen)) == truth


async def test_a_token_loses_nothing_when_postgres_assigns_transaction_ids_again(
    own_postgres: Postgres, redis_url: str
) -> None:
    """A token made of the snapshot's xmin would: after the crash changes are written below it."""
    async with quiet(own_postgres.dsn, redis_url) as stack:
        with psycopg.connect(own_postgres.dsn, autocommit=True) as conn:
            # Nothing flushes the WAL of the transactions below, so that the crash forgets their IDs.
            conn.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            conn.execute("SELECT pg_reload_conf()")
            await asyncio.sleep(0.5)  # more than the delay of before
            for _ in range(20):
                with conn.transaction(force_rollback=True):
                    conn.execute("SELECT pg_current_xact_id()")
            token = (await stack.booking.ListBookingChanges(pb.ListBookingChangesRequest())).next_page_token
            [[before]] = conn.execute(XMIN).fetchall()
        await asyncio.to_thread(own_postgres.kill)
        await asyncio.to_thread(own_postgres.start)
        row = "INSERT INTO booking_changes (salon_id, type) VALUES ('s', 'SALON') RETURNING xact_id::text::bigint"
        [[written]] = rows(own_postgres.dsn, row)
        assert written < before
        request = pb.ListBookingChangesRequest(page_token=token)
        async with stack.channel("booking") as channel:
            page = await Callers("booking", channel).call(stack.booking.ListBookingChanges, request)
        assert [change.salon_id for change in page.booking_changes] == ["s"]
