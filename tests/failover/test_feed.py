"""The feed of changes while the service and Postgres crash: nothing lost, everything in order."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import grpc
import psycopg

from ops.process import free_ports
from ops.servers import Postgres
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.load import until
from tests.stack import booking_request, rows, running

WRITERS = 20
SALONS = [f"salon-{number}" for number in range(4)]
CRASHES = 4
CRASH_SECONDS = 1.5
DEADLINE_SECONDS = 2
XMIN = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
ALL = "SELECT salon_id, booking_code, revision FROM booking_changes ORDER BY xact_id, seq"

Seen: TypeAlias = list[tuple[str, str, int]]


class Callers:
    """Writers and readers of the feed, who go on after each error; `acknowledged` has what the writers were told."""

    def __init__(self, stub: booking_pb2_grpc.BookingServiceAsyncStub) -> None:
        """Begin with nothing."""
        self.stub = stub
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
        """Create bookings, confirm and cancel each."""
        salon_id = SALONS[number % len(SALONS)]
        while self.writing:
            request = booking_request(salon_id=salon_id, request_id=str(uuid4()))
            booking = await self.call(self.stub.CreateBooking, request)
            self.acknowledged.append((salon_id, booking.booking_code, booking.revision))
            for status in (pb.BOOKING_STATUS_CONFIRMED, pb.BOOKING_STATUS_CANCELLED):
                update = pb.UpdateBookingStatusRequest(
                    salon_id=salon_id, booking_code=booking.booking_code, status=status, request_id=str(uuid4())
                )
                booking = await self.call(self.stub.UpdateBookingStatus, update)
                self.acknowledged.append((salon_id, booking.booking_code, booking.revision))
            await asyncio.sleep(0.05)

    async def watch(self, salon_id: str, token: str, seen: Seen) -> None:
        """Note each change of a stream; come back with the last token when it ends."""
        while True:
            call: Any = self.stub.WatchBookings(pb.WatchBookingsRequest(salon_id=salon_id, page_token=token))
            try:
                async for reply in call:
                    if reply.HasField("booking_change"):
                        seen.append(_key(reply.booking_change))
                    token = reply.page_token
            except grpc.aio.AioRpcError as error:
                assert error.code().name == "UNAVAILABLE", error
                await asyncio.sleep(0.05)

    async def sync(self, token: str, seen: Seen) -> None:
        """Note the changes of pages of 7."""
        while True:
            request = pb.ListBookingChangesRequest(page_size=7, page_token=token)
            page = await self.call(self.stub.ListBookingChanges, request)
            seen += map(_key, page.booking_changes)
            token = page.next_page_token
            if len(page.booking_changes) < 7:
                await asyncio.sleep(0.05)


def _key(change: pb.BookingChange) -> tuple[str, str, int]:
    return change.salon_id, change.booking_code, change.revision


@asynccontextmanager
async def until_the_end(*running: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run readers until the block ends; what one of them raises ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in running]
        yield
        for task in tasks:
            task.cancel()


async def test_every_change_is_seen_in_order_through_crashes(
    own_postgres: Postgres, redis_url: str, tmp_path: Path
) -> None:
    port, metrics_port = free_ports(2)
    plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, port), metrics_port)
    service = Service(
        "booking", port, tmp_path / "booking.log", environments(plan, own_postgres.dsn, redis_url)["booking"]
    )
    crashes: list[Callable[[], Any]] = [service.kill, own_postgres.kill]
    starts: list[Callable[[], Any]] = [service.start, own_postgres.start]
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    async with asyncio.timeout(120), grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        with service:
            callers = Callers(booking_pb2_grpc.BookingServiceStub(channel))
            for number, salon_id in enumerate(SALONS):
                salon = pb.Salon(salon_id=salon_id, phone_number_id=f"{number}", name="S", time_zone="UTC")
                await callers.stub.UpsertSalon(pb.UpsertSalonRequest(salon=salon))
            tokens = {
                each: (
                    await callers.stub.ListBookingChanges(pb.ListBookingChangesRequest(salon_id=each))
                ).next_page_token
                for each in ("", SALONS[0])
            }
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
                truth: Seen = rows(own_postgres.dsn, ALL)[len(SALONS) :]
                mine = [each for each in truth if each[0] == SALONS[0]]
                await until(lambda: all(len(set(seen)) >= len(truth) for seen in everything))
                await until(lambda: len(set(of_one)) >= len(mine))
    print(f"{len(truth)} changes, {callers.failures} failed calls, seen {[len(seen) for seen in everything]}")
    assert callers.failures > 0
    assert set(callers.acknowledged) <= set(truth)
    assert len(truth) > 20 * WRITERS
    assert list(dict.fromkeys(of_one)) == mine
    for seen in everything:
        assert list(dict.fromkeys(seen)) == truth


async def test_a_token_loses_nothing_when_postgres_assigns_transaction_ids_again(
    own_postgres: Postgres, redis_url: str
) -> None:
    """A token made of the snapshot's xmin would: after the crash changes are written below it."""
    async with running(own_postgres.dsn, redis_url) as stack:
        with psycopg.connect(own_postgres.dsn, autocommit=True) as conn:
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
        read = Callers(stack.booking).call(stack.booking.ListBookingChanges, request)
        assert [change.salon_id for change in (await read).booking_changes] == ["s"]
