"""What 1,000 watchers of changes cost while nothing happens, and how soon a change comes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import grpc
import psutil
import pytest

from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2_grpc
from parlor.messaging.v1 import messaging_pb2_grpc
from tests.feed import feed_rpcs, watching
from tests.stack import PHONE, SALON, booking_request, message_request, rows

WATCHERS = 1000
CHANNELS = 20
SECONDS = 30  # two keepalives
MOST_OF_A_CORE = 0.05
CHANGES = 200
P95_SECONDS = 0.3
STUBS: dict[str, Any] = {
    "booking": booking_pb2_grpc.BookingServiceStub,
    "messaging": messaging_pb2_grpc.MessagingServiceStub,
}


@asynccontextmanager
async def watchers(name: str, address: str, stack: AsyncExitStack) -> AsyncIterator[None]:
    """Watch, each another salon, over some connections; read all that comes."""

    async def watch(stub: Any, salon_id: str, begun: asyncio.Event) -> None:
        *_, stream, request = feed_rpcs(stub)
        async for _ in stream(request(salon_id=salon_id)):
            begun.set()

    tasks, events = [], []
    for number in range(CHANNELS):
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        )
        stub = STUBS[name](channel)
        for place in range(number, WATCHERS, CHANNELS):
            events.append(asyncio.Event())
            tasks.append(asyncio.create_task(watch(stub, f"salon-{place}", events[-1])))
    await asyncio.gather(*(event.wait() for event in events))
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize(("name", "transport"), [("booking", "http2"), ("booking", "grpcio"), ("messaging", "http2")])
async def test_a_thousand_idle_watchers_cost_little(
    database_url: str, redis_url: str, tmp_path: Path, name: str, transport: str
) -> None:
    salon = f"INSERT INTO salons (salon_id, phone_number_id, name, time_zone) VALUES ('{SALON}', '1', 'S', 'UTC')"
    conversation = f"INSERT INTO conversations (salon_id, phone_number) VALUES ('{SALON}', '{PHONE}')"
    for statement in (salon, conversation):
        rows(database_url, statement + " RETURNING 1")
    port, metrics_port = free_ports(2)
    plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, port), metrics_port)
    settings = environments(plan, database_url, redis_url)[name] | {"SERVER_TRANSPORT": transport}
    async with AsyncExitStack() as stack:
        service = stack.enter_context(Service(name, port, tmp_path / f"{name}.log", settings))
        address, process = f"127.0.0.1:{port}", psutil.Process(service.pid)
        alone = await used(process)
        async with watchers(name, address, stack):
            share = await used(process)
            resident = process.memory_info().rss / 2**20
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            took = sorted(await delays(STUBS[name](channel)))
    p95 = quantiles(took, n=20)[-1]
    print(
        f"{name}, {transport}: {100 * share:.2f} % of a core with {WATCHERS} idle watchers"
        f" ({100 * alone:.2f} % with none), {resident:.0f} MiB;"
        f" a change comes after {1000 * took[len(took) // 2]:.0f} ms, p95 {1000 * p95:.0f} ms"
    )
    assert share < MOST_OF_A_CORE
    assert p95 < P95_SECONDS


async def used(process: psutil.Process) -> float:
    """Return which share of a core a process uses."""
    before, began = process.cpu_times(), time.monotonic()
    await asyncio.sleep(SECONDS)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - began)


async def delays(stub: Any) -> list[float]:
    """Return after how many s each of some changes comes, from the reply to its write on."""
    written: dict[str, float] = {}
    seen: dict[str, float] = {}
    async with watching(stub, SALON) as watch:

        async def read() -> None:
            while len(seen) < CHANGES:
                [change] = await watch.changes(1)
                seen[change.booking_code if hasattr(change, "booking_code") else change.message_id] = (
                    time.perf_counter()
                )

        reading = asyncio.create_task(read())
        for number in range(CHANGES):
            if hasattr(stub, "CreateBooking"):
                name = (await stub.CreateBooking(booking_request(1_800_000_000 + 3600 * number))).booking_code
            else:
                name = (await stub.RecordMessage(message_request(f"wamid.{number}"))).message_id
            written[name] = time.perf_counter()
            await asyncio.sleep(0.037)
        await reading
    return [seen[name] - at for name, at in written.items()]
