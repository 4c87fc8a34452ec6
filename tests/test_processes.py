"""The services as processes: start, stop, memory, metrics and logs."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import psutil
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from ops.up import SERVICES
from parlor.booking.v1 import booking_pb2
from parlor.messaging.v1 import messaging_pb2
from parlor.stats.v1 import stats_pb2
from tests.load import DAY, FIRST, until, waiting_for_a_lock
from tests.processes import Processes, processes, stubs
from tests.stack import PHONE, SALON, Stack, booking_request, failure, message_request, salon

MB = 1_000_000
SHARE = 5  # connections for the writes of one salon
LOCKS = {"DB_LOCK_TIMEOUT": "20000"}
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
# Nothing listens on port 1, so a service that starts by mistake has no database.
STARTING = {
    "DATABASE_URL": "postgresql://parlor:hush-hush@127.0.0.1:1/parlor",
    "HOST": "127.0.0.1",
    "PORT": "0",
    "WHATSAPP_APP_SECRET": "hush-hush",
}


@pytest.fixture
def started(database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """The three services, each a process; their calls wait long for a lock."""
    monkeypatch.setenv(*next(iter(LOCKS.items())))
    with processes(database_url, redis_url, tmp_path) as running:
        yield running


async def test_sigterm_under_load_answers_every_accepted_call(started: Processes) -> None:
    """Calls that wait for a row at the signal are answered once they get it; new ones are UNAVAILABLE."""
    async with (
        stubs(started) as stack,
        watch(started) as health,
        await psycopg.AsyncConnection.connect(started.database_url) as holder,
    ):
        await salon(stack)
        bookings = [await stack.booking.CreateBooking(booking_request(FIRST + n * DAY)) for n in range(SHARE)]
        await holder.execute("SELECT FROM bookings FOR UPDATE")
        waiting = [
            asyncio.ensure_future(
                stack.booking.UpdateBookingStatus(
                    booking_pb2.UpdateBookingStatusRequest(
                        salon_id=SALON, booking_code=one.booking_code, status=booking_pb2.BOOKING_STATUS_CONFIRMED
                    )
                )
            )
            for one in bookings
        ]
        await until(lambda: waiting_for_a_lock(started.database_url, SHARE))
        assert [(await stream.read()).status for stream in health] == [SERVING] * 3
        answered: list[Any] = []
        readers = [asyncio.create_task(until_unavailable(rpc, request, answered)) for rpc, request in reads(stack) * 8]
        await until(lambda: len(answered) > 200)
        for service in started.services.values():
            service.terminate()
        assert [(await stream.read()).status for stream in health] == [NOT_SERVING] * 3
        await asyncio.gather(*readers)
        assert started.services["booking"].is_running
        assert not any(call.done() for call in waiting)
        await holder.rollback()
        assert {one.status for one in await asyncio.gather(*waiting)} == {booking_pb2.BOOKING_STATUS_CONFIRMED}
        await until(lambda: not any(service.is_running for service in started.services.values()), 5)
    assert [service.exit_code for service in started.services.values()] == [0, 0, 0]


async def test_memory_stays_under_150_mb_and_does_not_grow(started: Processes) -> None:
    pids = {name: service.pid for name, service in started.services.items()}
    async with stubs(started) as stack:
        await salon(stack)
        await stack.messaging.RecordMessage(message_request())
        resident: list[dict[str, float]] = []
        for part in range(2):
            await asyncio.gather(*(call_often(calls, 5_000) for calls in mixed_calls(stack, part)))
            resident.append({name: psutil.Process(pid).memory_info().rss / MB for name, pid in pids.items()})
    first, second = resident
    assert max(second.values()) < 150
    assert max(second[name] - first[name] for name in first) < 2.5, resident


async def test_metrics_show_calls_cache_and_database(started: Processes) -> None:
    async with stubs(started) as stack:
        await salon(stack)
        before = scrape(started, "booking")
        request = booking_pb2.GetSalonRequest(salon_id=SALON)
        for _ in range(3):
            await stack.booking.GetSalon(request)
        await failure(stack.booking.GetSalon(booking_pb2.GetSalonRequest(salon_id="unknown")))
        after = scrape(started, "booking")
    labels = {"grpc_type": "unary", "grpc_service": SERVICES["booking"], "grpc_method": "GetSalon"}
    assert after[sample("grpc_server_handled_total", **labels, grpc_code="OK")] == 3
    assert after[sample("grpc_server_handled_total", **labels, grpc_code="NotFound")] == 1
    assert after[sample("grpc_server_handling_seconds_count", **labels)] == 4
    assert after[sample("grpc_server_handling_seconds_bucket", **labels, le="+Inf")] == 4
    assert 0 < after[sample("grpc_server_handling_seconds_sum", **labels)] < 10
    assert (
        sum(after[sample("parlor_cache_reads_total", source=source)] for source in ("near", "hit", "miss", "bypass"))
        == 4
    )
    for moving in ("parlor_db_queries_total", "parlor_db_query_seconds_total", "parlor_db_requests_total"):
        assert after[sample(moving)] > before[sample(moving)]
    assert after[sample("parlor_db_available")] == after[sample("parlor_cache_connected")] == 1
    assert after[sample("parlor_db_pool_size")] >= 1
    for name in SERVICES:
        assert scrape(started, name)[sample("parlor_db_requests_errors_total")] == 0


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("booking", "DB_POOL_TIMEOUT", "soon"),
        ("booking", "REDIS_TTL_DEFAULT", "0"),
        ("booking", "PORT", "65536"),
        ("booking", "METRICS_PORT", "x"),
        ("booking", "BOOKING_DATABASE_URL", "postgresql://parlor:hush-hush@127.0.0.1:1/parlor?connection_limit=abc"),
        ("stats", "STATS_DATABASE_URL", "mysql://parlor:hush-hush@127.0.0.1/parlor"),
        ("messaging", "WHATSAPP_APP_SECRET", None),
    ],
)
def test_start_fails_with_one_line_that_names_the_bad_setting(name: str, variable: str, value: str | None) -> None:
    environment = {**STARTING, variable: value}
    code, output = fail_to_start(name, {key: each for key, each in environment.items() if each is not None})
    assert code == 2
    assert output.startswith(f"{name}: {variable}")
    assert output.count("\n") == 1
    assert "hush-hush" not in output


@pytest.mark.parametrize("variable", ["PORT", "METRICS_PORT"])
def test_start_fails_with_one_line_that_names_the_port_in_use(variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = fail_to_start("booking", {**STARTING, variable: str(port)})
    assert code == 2
    assert f"127.0.0.1:{port}" in output
    assert "Traceback" not in output


def test_phone_numbers_are_masked_in_logs_of_all_libraries() -> None:
    program = f"""
import logging, structlog
from libs.server import logs
logs.configure("info", service="test")
structlog.get_logger().info("call {PHONE}", of="{PHONE}", parts=["{PHONE}", {{"to": "{PHONE}"}}])
try:
    raise ValueError("{PHONE}")
except ValueError:
    structlog.get_logger().exception("failed")
    logging.getLogger("library").exception("failed %s", "{PHONE}")
"""
    ended = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["info", "error", "error"]
    assert ended.stderr.count(PHONE[:3] + "*") == 7
    assert PHONE[4:-3] not in ended.stdout + ended.stderr


@asynccontextmanager
async def watch(started: Processes) -> AsyncIterator[list[Any]]:
    """Watch the health of each service, on a separate channel, as a load balancer does."""
    async with AsyncExitStack() as exits:
        streams = []
        for name, service in started.services.items():
            address = f"127.0.0.1:{service.port}"
            stub: Any = health_pb2_grpc.HealthStub(await exits.enter_async_context(grpc.aio.insecure_channel(address)))
            streams.append(stub.Watch(health_pb2.HealthCheckRequest(service=SERVICES[name])))
        yield streams


def reads(stack: Stack) -> list[tuple[Any, Any]]:
    """Return a read of each service."""
    period = {"start_time": Timestamp(seconds=FIRST), "end_time": Timestamp(seconds=FIRST + DAY)}
    return [
        (stack.booking.ListBookings, booking_pb2.ListBookingsRequest(salon_id=SALON)),
        (stack.messaging.ListMessages, messaging_pb2.ListMessagesRequest(salon_id=SALON)),
        (stack.stats.GetSalonStats, stats_pb2.GetSalonStatsRequest(salon_id=SALON, **period)),
    ]


async def until_unavailable(rpc: Any, request: Any, answered: list[Any]) -> None:
    """Call until the service is UNAVAILABLE. Any other failure raises, also CANCELLED, which clients do not retry."""
    while True:
        try:
            answered.append(await rpc(request, timeout=10))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return
            raise


def mixed_calls(stack: Stack, part: int) -> list[Iterator[Callable[[], Any]]]:
    """Return endless calls of each service: mostly reads, of few and of many keys, and some writes."""
    hours = [Timestamp(seconds=FIRST + hour * 3600) for hour in range(25)]

    def booking(number: int) -> Any:
        start = FIRST + (number + part * 10_000) * 3600
        if number % 50 == 0:
            return stack.booking.CreateBooking(booking_request(start))
        if number % 9 == 0:
            return stack.booking.ListBookings(
                booking_pb2.ListBookingsRequest(
                    salon_id=SALON, start_time=Timestamp(seconds=start), end_time=Timestamp(seconds=start + 3600)
                )
            )
        return stack.booking.GetSalon(booking_pb2.GetSalonRequest(salon_id=SALON))

    def messaging(number: int) -> Any:
        if number % 50 == 0:
            return stack.messaging.RecordMessage(message_request(f"wamid.{part}.{number}"))
        if number % 9 == 0:
            phone = f"+49152{number:08d}"
            return stack.messaging.ListMessages(messaging_pb2.ListMessagesRequest(salon_id=SALON, phone_number=phone))
        request = messaging_pb2.GetConversationRequest(salon_id=SALON, phone_number=PHONE)
        return stack.messaging.GetConversation(request)

    def stats(number: int) -> Any:
        period = {"start_time": hours[number % 24], "end_time": hours[number % 24 + 1]}
        if number % 9 == 0:
            return stack.stats.GetMessageDirectionStats(
                stats_pb2.GetMessageDirectionStatsRequest(salon_id=SALON, **period)
            )
        return stack.stats.GetSalonStats(stats_pb2.GetSalonStatsRequest(salon_id=SALON, **period))

    return [map(make, count()) for make in (booking, messaging, stats)]


async def call_often(calls: Iterator[Any], times: int, at_once: int = 24) -> None:
    """Make `times` calls, `at_once` concurrently; each must be answered OK."""
    wanted = islice(calls, times)

    async def one_after_another() -> None:
        for call in wanted:
            await call

    await asyncio.gather(*(one_after_another() for _ in range(at_once)))


def sample(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Return the key of a sample."""
    return name, frozenset(labels.items())


def scrape(started: Processes, name: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return a service's metrics."""
    with urlopen(f"http://127.0.0.1:{started.metrics_ports[name]}/metrics", timeout=5) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    return {sample(each.name, **each.labels): each.value for family in families for each in family.samples}


def fail_to_start(name: str, environment: dict[str, str]) -> tuple[int, str]:
    """Start a service that must fail to start; return its exit code and output."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("DB_", "REDIS_"))}
    ended = subprocess.run(  # noqa: S603 - a service of ours
        [sys.executable, "-m", f"services.{name}"],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr
