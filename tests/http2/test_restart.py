"""A rolling restart under load: a client with our channel's retries sees no failed call."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest

from libs.server.client import channel
from ops.process import free_ports
from ops.up import Plan, Service, environments
from parlor.booking.v1 import booking_pb2 as pb
from parlor.booking.v1 import booking_pb2_grpc
from tests.http2.conftest import TRANSPORTS
from tests.stack import SALON, booking_request

CALLERS = 8
BOOKING = pb.DESCRIPTOR.services_by_name["BookingService"]


@pytest.fixture
def replicas(
    request: pytest.FixtureRequest, transport: str, database_url: str, redis_url: str, tmp_path: Path
) -> Iterator[list[Service]]:
    """Two processes of the booking service on different ports."""
    ports = free_ports(8)
    found = []
    with ExitStack() as stack:
        for number in range(2):
            names = dict(zip(("booking", "messaging", "stats"), ports[3 * number :], strict=False))
            plan = Plan(tmp_path, None, False, None, names, ports[6 + number])
            environment = environments(plan, database_url, redis_url)["booking"] | {"SERVER_TRANSPORT": transport}
            service = Service("booking", names["booking"], tmp_path / f"{number}.log", environment)
            found.append(stack.enter_context(service))
        yield found


class Load:
    """Callers that read and write sequentially; the failures, and the number of answers."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.answered = 0
        self.failed: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._starts = count(1_800_000_000, 3600)

    async def call(self) -> None:
        """Call until canceled."""
        while True:
            try:
                await self.stub.GetSalon(pb.GetSalonRequest(salon_id=SALON), timeout=30)
                await self.stub.CreateBooking(booking_request(next(self._starts)), timeout=30)
                await self.stub.ListBookings(pb.ListBookingsRequest(salon_id=SALON, page_size=5), timeout=30)
            except grpc.aio.AioRpcError as error:
                self.failed[f"{error.code()}: {error.details()}"] += 1
            else:
                self.answered += 3
                self._changed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Call while the block runs."""
        tasks = [asyncio.create_task(self.call()) for _ in range(CALLERS)]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def more(self, calls: int) -> None:
        """Wait until `count` more calls are answered."""
        until = self.answered + calls
        async with asyncio.timeout(60):
            while self.answered < until:
                self._changed.clear()
                await self._changed.wait()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_no_call_fails_while_the_replicas_are_restarted_one_by_one(
    pytestconfig: pytest.Config, replicas: list[Service]
) -> None:
    loop, address = asyncio.get_running_loop(), ",".join(f"127.0.0.1:{service.port}" for service in replicas)
    restarts = pytestconfig.getoption("--restarts") or 3
    with ThreadPoolExecutor(1) as thread:  # the kernel ends a process with the thread that started it
        async with channel(f"ipv4:{address}", BOOKING) as connected:
            stub: Any = booking_pb2_grpc.BookingServiceStub(connected)
            salon = pb.Salon(salon_id=SALON, phone_number_id="1", name="Hair", time_zone="Europe/Berlin")
            await stub.UpsertSalon(pb.UpsertSalonRequest(salon=salon))
            load = Load(stub)
            async with load.running():
                for number in range(restarts):
                    await load.more(100)
                    service = replicas[number % 2]
                    await loop.run_in_executor(thread, service.stop)
                    assert service.exit_code == 0
                    await load.more(100)
                    await loop.run_in_executor(thread, service.start)
                await load.more(100)
        for service in replicas:
            await loop.run_in_executor(thread, service.stop)
    print(f"{restarts} restarts, {load.answered} calls")
    assert load.failed == {}
    assert load.answered > 200 * restarts
