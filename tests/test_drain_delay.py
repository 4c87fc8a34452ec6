"""A rolling restart behind a proxy that checks health twice a second and does not retry."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from tests.load import until
from tests.stack import SALON

CHECK_SECONDS = 0.5
DELAY_SECONDS = 4
LATE = "late"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
GET = booking_pb2.GetSalonRequest(salon_id=SALON)
CHECK = health_pb2.HealthCheckRequest(service=SERVICES["booking"])


class Replica:
    """A booking service, and its state as known to the proxy."""

    def __init__(self, service: Service, exits: AsyncExitStack) -> None:
        """Start the service."""
        self.service = exits.enter_context(service)
        self.is_healthy = True
        self.address = f"127.0.0.1:{service.port}"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[grpc.aio.Channel]:
        """Open a new connection."""
        options = [("grpc.use_local_subchannel_pool", 1)]  # it resends only unsent calls, after a GOAWAY
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            yield channel

    async def health(self, channel: grpc.aio.Channel) -> Any:
        """Return the health of the service, None if it is unavailable, LATE if it did not answer in time."""
        check: Any = health_pb2_grpc.HealthStub(channel)
        try:
            return (await check.Check(CHECK, timeout=CHECK_SECONDS)).status
        except grpc.aio.AioRpcError as error:
            return LATE if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else None

    async def restart(self) -> None:
        """Stop the process, which ends its calls first, and start it again."""
        self.service.terminate()
        await until(lambda: not self.service.is_running, 30)
        assert self.service.exit_code == 0
        await asyncio.to_thread(self.service.start)


@pytest.fixture
async def replicas(database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[list[Replica]]:
    """Two replicas, and a salon."""
    *ports, metrics_port = free_ports(3)
    plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, ports[0]), metrics_port)
    settings = environments(plan, database_url, redis_url)["booking"] | {"DRAIN_DELAY": str(1000 * DELAY_SECONDS)}
    del settings["METRICS_PORT"]
    async with AsyncExitStack() as exits:
        started = [
            Replica(Service("booking", port, tmp_path / f"{port}.log", settings | {"PORT": str(port)}), exits)
            for port in ports
        ]
        async with started[0].connected() as channel:
            salon = booking_pb2.Salon(salon_id=SALON, phone_number_id="1", name="Hair", time_zone="Europe/Berlin")
            await booking_pb2_grpc.BookingServiceStub(channel).UpsertSalon(booking_pb2.UpsertSalonRequest(salon=salon))
        yield started


async def test_no_call_fails_in_a_rolling_restart(replicas: list[Replica], pytestconfig: pytest.Config) -> None:
    done: Counter[Any] = Counter()
    async with AsyncExitStack() as exits:
        channels = [await exits.enter_async_context(each.connected()) for each in replicas]
        over = asyncio.Event()

        async def check(replica: Replica, channel: grpc.aio.Channel) -> None:
            while not over.is_set():
                if (found := await replica.health(channel)) != LATE:  # the machine may be busy
                    replica.is_healthy = found == SERVING
                await asyncio.sleep(CHECK_SECONDS)

        async def call(number: int) -> None:
            while not over.is_set():
                number += 1
                healthy = [at for at, each in enumerate(replicas) if each.is_healthy]
                stub = booking_pb2_grpc.BookingServiceStub(channels[healthy[number % len(healthy)]])
                try:
                    await stub.GetSalon(GET, timeout=10)
                    done["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    done[error.code(), error.details()] += 1
                await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(check(*each)) for each in zip(replicas, channels, strict=True)]
        tasks += [asyncio.create_task(call(number)) for number in range(8)]
        for number in range(pytestconfig.getoption("--restarts") or 2):
            one = replicas[number % 2]
            await one.restart()
            await until(lambda: one.is_healthy)  # noqa: B023 - it is awaited here
        over.set()
        await asyncio.gather(*tasks)
    assert list(done) == ["OK"], done
    assert done["OK"] > 100


async def test_a_draining_service_is_not_serving_at_once_but_still_answers(replicas: list[Replica]) -> None:
    one = replicas[0]
    async with one.connected() as before:
        assert await one.health(before) == SERVING
        one.service.terminate()
        begin = time.monotonic()
        async with one.connected() as after:
            await until(lambda: _has_status(one, before, NOT_SERVING))
            for channel in (before, after):
                await booking_pb2_grpc.BookingServiceStub(channel).GetSalon(GET)
                while (found := await one.health(channel)) == LATE:
                    pass
                assert found == NOT_SERVING
            assert time.monotonic() - begin < DELAY_SECONDS
            await until(lambda: not one.service.is_running)
    assert time.monotonic() - begin >= DELAY_SECONDS
    assert one.service.exit_code == 0


async def _has_status(replica: Replica, channel: grpc.aio.Channel, status: Any) -> bool:
    return bool(await replica.health(channel) == status)
