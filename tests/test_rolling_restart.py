"""Two replicas that are restarted in turn under load: a client with the documented service config sees no failure."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import grpc
import psutil
import pytest

from libs.rpc import service_config
from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from tests.load import DAY, FIRST, until
from tests.stack import SALON, booking_request

BOOKING = booking_pb2.DESCRIPTOR.services_by_name["BookingService"]
READERS, WRITERS = 6, 2
CALLS_BETWEEN = 200  # answered between two restarts, at least
RECONNECT = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))


@pytest.fixture(params=["http2", "grpcio"])
def replicas(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, tmp_path: Path
) -> Iterator[list[Service]]:
    """The booking service twice, on each transport."""
    with ExitStack() as stack:
        made = []
        for number in range(2):
            port, metrics_port = free_ports(2)
            plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, port), metrics_port)
            settings = environments(plan, database_url, redis_url)["booking"] | {"SERVER_TRANSPORT": request.param}
            log = tmp_path / f"booking-{number}.log"
            made.append(stack.enter_context(Service("booking", port, log, settings)))
        yield made


def is_connected(replica: Service) -> bool:
    """Return whether the client has come back to a replica."""
    states = [each.status for each in psutil.Process(replica.pid).net_connections() if each.laddr.port == replica.port]
    return psutil.CONN_ESTABLISHED in states


async def test_restarts_under_load_fail_no_call(replicas: list[Service], pytestconfig: pytest.Config) -> None:
    config = service_config(BOOKING) | {"loadBalancingConfig": [{"round_robin": {}}]}
    address = "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
    options = [("grpc.service_config", json.dumps(config)), ("grpc.enable_retries", 1), *RECONNECT]
    answered, over = Counter[str](), asyncio.Event()
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        booking: booking_pb2_grpc.BookingServiceAsyncStub = booking_pb2_grpc.BookingServiceStub(channel)
        salon = booking_pb2.Salon(salon_id=SALON, phone_number_id="1", name="Hair", time_zone="Europe/Berlin")
        await booking.UpsertSalon(booking_pb2.UpsertSalonRequest(salon=salon))

        async def read() -> None:
            while not over.is_set():
                await booking.GetSalon(booking_pb2.GetSalonRequest(salon_id=SALON), timeout=20)
                answered["read"] += 1

        async def write(number: int) -> None:
            while not over.is_set():
                start = FIRST + DAY * (WRITERS * answered[f"write {number}"] + number)
                request = booking_request(start, request_id=str(uuid4()))
                await booking.CreateBooking(request, timeout=20)
                answered[f"write {number}"] += 1

        async with asyncio.TaskGroup() as callers:
            for number in range(READERS + WRITERS):
                callers.create_task(read() if number < READERS else write(number - READERS))
            for restart in range(pytestconfig.getoption("--restarts") or 3):
                replica, before = replicas[restart % len(replicas)], answered.total()
                await asyncio.to_thread(replica.stop)
                await asyncio.to_thread(replica.start)
                await until(lambda: is_connected(replica) and answered.total() >= before + CALLS_BETWEEN)  # noqa: B023
            over.set()
    print(dict(answered))
