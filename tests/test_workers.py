"""A service as several processes on one port: distribution of calls, shared metrics, and shutdown."""

from __future__ import annotations  # the AsyncStubs exist in the .pyi only

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import psycopg
import pytest

from libs.server import channel
from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, connections, environments
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from parlor.ops.v1 import ops_pb2, ops_pb2_grpc
from tests.load import DAY, FIRST, until, waiting_for_a_lock
from tests.processes import Processes
from tests.stack import SALON, booking_request
from tests.test_processes import LOCKS, SHARE, STARTING, fail_to_start, sample, scrape, until_unavailable

CHANNELS = 40  # one connection each; the chance that one of two workers gets fewer than SHARE is 1 in 5 million
WORKER_SECONDS = 3  # how long the event loop of a worker may hang
GET = booking_pb2.GetSalonRequest(salon_id=SALON)
GOT = sample(
    "grpc_server_handled_total",
    grpc_type="unary",
    grpc_service="parlor.booking.v1.BookingService",
    grpc_method="GetSalon",
    grpc_code="OK",
)
CONFIRMED = booking_pb2.BOOKING_STATUS_CONFIRMED
BOOKING = booking_pb2.DESCRIPTOR.services_by_name["BookingService"]


@pytest.fixture
def started(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Processes]:
    """The booking service with two workers and a long lock timeout."""
    port, metrics_port, ops_port = free_ports(3)
    ports = dict.fromkeys(SERVICES, port)  # only booking is started
    plan = Plan(tmp_path, None, False, None, ports, metrics_port, workers=2, ops_port=ops_port)
    settings = environments(plan, database_url, redis_url)["booking"] | LOCKS
    settings["WORKER_TIMEOUT"] = str(1000 * WORKER_SECONDS)
    with Service("booking", port, tmp_path / "booking.log", settings) as booking:
        yield Processes({"booking": booking}, database_url, {"booking": metrics_port}, {"booking": ops_port})


@asynccontextmanager
async def callers(started: Processes) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Open the connections, and create the salon that is read."""
    await until(lambda: len(workers(started)) == 2)
    async with AsyncExitStack() as exits:
        channels = await connected(started.services["booking"].port, exits)
        salon = booking_pb2.Salon(salon_id=SALON, phone_number_id="1", name="Hair", time_zone="Europe/Berlin")
        await stub(channels[0]).UpsertSalon(booking_pb2.UpsertSalonRequest(salon=salon))
        yield channels


async def connected(port: int, exits: AsyncExitStack) -> list[grpc.aio.Channel]:
    """Open channels to a port, each with a separate connection."""
    address, own = f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
    return [await exits.enter_async_context(grpc.aio.insecure_channel(address, options=own)) for _ in range(CHANNELS)]


def stub(of: grpc.aio.Channel) -> booking_pb2_grpc.BookingServiceAsyncStub:
    """Return booking's stub on a channel."""
    return booking_pb2_grpc.BookingServiceStub(of)


def workers(started: Processes) -> dict[int, int]:
    """Return the number of callers connected to each listening worker, by process ID."""
    booking, found = started.services["booking"], {}
    for child in psutil.Process(booking.pid).children():
        with suppress(psutil.NoSuchProcess):  # killed after it was listed
            states = [each.status for each in child.net_connections() if each.laddr.port == booking.port]
            if psutil.CONN_LISTEN in states:
                found[child.pid] = states.count(psutil.CONN_ESTABLISHED)
    return found


async def scraped(started: Processes, count: float) -> dict[Any, float]:
    """Return the metrics once they show `count` answers; those of another worker are up to a second old."""
    async with asyncio.timeout(20):
        while (shown := await asyncio.to_thread(scrape, started, "booking"))[GOT] != count:
            assert shown[GOT] < count
    return shown


async def test_workers_share_a_port_and_sum_their_metrics_even_if_one_is_killed(started: Processes) -> None:
    async with callers(started) as channels, AsyncExitStack() as exits:
        await asyncio.gather(*(stub(each).GetSalon(GET) for each in channels * 5))
        before = workers(started)
        assert all(before.values())
        assert sum(before.values()) == CHANNELS
        shown = await scraped(started, 5 * CHANNELS)
        assert shown[sample("parlor_cache_connected")] == shown[sample("parlor_db_available")] == 1
        assert shown[sample("parlor_db_pool_max")] == 40
        ops = [ops_pb2_grpc.OpsServiceStub(each) for each in await connected(started.ops_ports["booking"], exits)]
        for each in ops:
            cache = await each.GetCacheStatistics(ops_pb2.GetCacheStatisticsRequest())
            assert cache.metrics.total + cache.metrics.bypasses == 5 * CHANNELS
            database = await each.GetDatabaseMetrics(ops_pb2.GetDatabaseMetricsRequest())
            assert database.pool.limit == 40
            assert database.pool.available

        codes: set[grpc.StatusCode] = set()
        answered = 0
        over = asyncio.Event()

        async def call(one: grpc.aio.Channel) -> None:
            nonlocal answered
            while not over.is_set():
                try:
                    await stub(one).GetSalon(GET, timeout=10)
                    answered += 1
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code())

        async with channel(f"127.0.0.1:{started.services['booking'].port}", BOOKING) as retried:
            calls = asyncio.gather(*(call(each) for each in [*channels[:8], retried]))
            await until(lambda: answered > 100)
            killed, survivor = before
            os.kill(killed, signal.SIGKILL)
            seen = shown[GOT]
            while len(workers(started)) < 2:
                with suppress(ConnectionError):  # the killed worker had accepted the scrape
                    now = (await asyncio.to_thread(scrape, started, "booking"))[GOT]
                    assert now >= seen
                    seen = now
            over.set()
            await calls
        assert codes <= {grpc.StatusCode.UNAVAILABLE}
        assert survivor in workers(started)
        assert killed not in workers(started)

    for _ in range(40):  # a worker writes its counts before it answers, and both workers answer some of these
        shown = await asyncio.to_thread(scrape, started, "booking")
    assert shown[GOT] >= seen
    async with callers(started) as channels:  # new connections, because the old ones may all be on the survivor
        await asyncio.gather(*(stub(each).GetSalon(GET) for each in channels))
        assert all(workers(started).values())
        await scraped(started, shown[GOT] + CHANNELS)


async def test_sigterm_drains_every_worker(started: Processes) -> None:
    """Calls that wait for a row at the signal are answered once they get it; new ones are UNAVAILABLE."""
    async with (
        callers(started) as channels,
        await psycopg.AsyncConnection.connect(started.database_url) as holder,
    ):
        bookings = [await stub(channels[n]).CreateBooking(booking_request(FIRST + n * DAY)) for n in range(CHANNELS)]
        await holder.execute("SELECT FROM bookings FOR UPDATE")
        waiting = [
            asyncio.ensure_future(
                stub(one).UpdateBookingStatus(
                    booking_pb2.UpdateBookingStatusRequest(
                        salon_id=SALON, booking_code=booking.booking_code, status=CONFIRMED
                    )
                )
            )
            for one, booking in zip(channels, bookings, strict=True)
        ]
        await until(lambda: waiting_for_a_lock(started.database_url, 2 * SHARE))
        assert all(workers(started).values())
        answered: list[object] = []
        readers = [asyncio.create_task(until_unavailable(stub(each).GetSalon, GET, answered)) for each in channels]
        await until(lambda: len(answered) > 200)
        started.services["booking"].terminate()
        await asyncio.gather(*readers)
        assert not any(call.done() for call in waiting)
        await holder.rollback()
        assert {one.status for one in await asyncio.gather(*waiting)} == {CONFIRMED}
        await until(lambda: not started.services["booking"].is_running, 5)
    assert started.services["booking"].exit_code == 0


async def test_a_hung_worker_is_killed_and_replaced(started: Processes) -> None:
    async with callers(started) as channels:
        hung = next(iter(workers(started)))
        os.kill(hung, signal.SIGSTOP)
        await until(lambda: hung not in workers(started) and len(workers(started)) == 2)
        await asyncio.gather(*(stub(each).GetSalon(GET, wait_for_ready=True, timeout=10) for each in channels))


async def test_a_service_stops_even_if_a_worker_hangs(started: Processes) -> None:
    async with callers(started):
        os.kill(next(iter(workers(started))), signal.SIGSTOP)
        started.services["booking"].terminate()
        await until(lambda: not started.services["booking"].is_running)


async def test_no_worker_is_killed_if_all_processes_were_suspended(started: Processes) -> None:
    async with callers(started) as channels:
        before = set(workers(started))
        stopped = [started.services["booking"].pid, *before]
        for each in stopped:
            os.kill(each, signal.SIGSTOP)
        await asyncio.sleep(1.5 * WORKER_SECONDS)
        for each in stopped:
            os.kill(each, signal.SIGCONT)
        await asyncio.sleep(1.5 * WORKER_SECONDS)
        assert set(workers(started)) == before
        await asyncio.gather(*(stub(each).GetSalon(GET) for each in channels))


async def test_a_port_of_workers_counts_as_in_use_and_they_end_with_their_parent(started: Processes) -> None:
    booking, metrics_port = started.services["booking"], started.metrics_ports["booking"]
    await until(lambda: len(workers(started)) == 2)
    own = psutil.Process(booking.pid).children()
    port = {"PORT": str(booking.port)}
    failed = await asyncio.gather(
        *(
            asyncio.to_thread(fail_to_start, name, {**STARTING, **settings})
            for name, settings in (
                ("booking", {**port, "WORKERS": "2"}),
                ("booking", {**port, "WORKERS": "1"}),
                ("booking", {"METRICS_PORT": str(metrics_port), "WORKERS": "2"}),
                ("messaging", {"WORKERS": "2", "WHATSAPP_APP_SECRET": ""}),
            )
        )
    )
    assert [code for code, _ in failed] == [2, 2, 2, 2]
    for (_, output), part in zip(
        failed, [booking.port, booking.port, metrics_port, "WHATSAPP_APP_SECRET"], strict=True
    ):
        assert str(part) in output.splitlines()[-1]
        assert "Traceback" not in output
    assert len(failed[-1][1].splitlines()) == 1
    booking.kill()
    await until(lambda: not any(each.is_running() for each in own), 5)


def test_the_bundled_postgres_has_connections_for_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_CONNECTION_LIMIT", "30")
    assert connections(1) == 200
    assert connections(4) >= 3 * 4 * 31
