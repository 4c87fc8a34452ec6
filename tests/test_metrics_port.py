"""The metrics port under attack: scrapes are answered, no thread starts, and the log stays JSON."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import psutil
import pytest

from ops.process import free_ports
from ops.up import SERVICES, Plan, Service, environments
from parlor.booking.v1 import booking_pb2, booking_pb2_grpc
from tests.feed import watching
from tests.load import until
from tests.processes import Processes, processes
from tests.test_processes import sample, scrape

IDLE = 1500


@pytest.fixture
def started(database_url: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Processes]:
    """The booking service."""
    port, metrics_port, ops_port = free_ports(3)
    workers = getattr(request, "param", 1)
    plan = Plan(tmp_path, None, False, None, dict.fromkeys(SERVICES, port), metrics_port, workers, ops_port)
    settings = environments(plan, database_url, redis_url)["booking"]
    with Service("booking", port, tmp_path / "booking.log", settings) as booking:
        yield Processes({"booking": booking}, database_url, {"booking": metrics_port}, {"booking": ops_port})


@asynccontextmanager
async def connected(port: int, count: int, sent: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Open `count` connections, and send something on each."""
    pairs = []
    try:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            pairs.append((reader, writer))
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /metrics HT",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n",
        b"\x16\x03\x01\x02\x00\x01" + bytes(100),
        b"GET /" + b"x" * 20_000,
        b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",
    ],
    ids=["nothing", "half a line", "half a head", "TLS", "a long line", "POST", "a scrape that is not read"],
)
async def test_1500_connections_take_no_thread_and_delay_no_scrape(started: Processes, sent: bytes) -> None:
    process, port = psutil.Process(started.services["booking"].pid), started.metrics_ports["booking"]
    await asyncio.to_thread(scrape, started, "booking")
    threads = process.num_threads()
    async with connected(port, IDLE, sent):
        assert sample("parlor_db_available") in await asyncio.to_thread(scrape, started, "booking")
        assert process.num_threads() <= threads + 6  # those that collect metrics
        assert len([each for each in process.net_connections() if each.laddr.port == port]) < 100
    lines = started.services["booking"].log.read_text().splitlines()
    assert all("event" in json.loads(line) for line in lines), lines


async def test_an_idle_connection_is_closed(started: Processes) -> None:
    async with connected(started.metrics_ports["booking"], 1, b"GET") as [reader]:
        assert await asyncio.wait_for(reader.read(), 10) == b""


def test_each_exposition_format_is_served(started: Processes) -> None:
    url = f"http://127.0.0.1:{started.metrics_ports['booking']}/metrics"
    with urlopen(url, timeout=5) as plain:
        assert plain.headers["Content-Type"].startswith("text/plain")
        assert b"# HELP parlor_cache_reads_total" in plain.read()
    accepted = Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urlopen(accepted, timeout=5) as open_metrics:  # noqa: S310
        assert open_metrics.headers["Content-Type"].startswith("application/openmetrics-text")
        assert open_metrics.read().endswith(b"# EOF\n")


def test_operations_md_lists_every_metric_with_its_type(database_url: str, redis_url: str, tmp_path: Path) -> None:
    served: dict[str, str] = {}
    with processes(database_url, redis_url, tmp_path, {"SERVER_TRANSPORT": "http2"}) as system:
        for port in system.metrics_ports.values():
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                served |= dict(re.findall(r"^# TYPE (\w+) (\w+)$", page.read().decode(), re.MULTILINE))
    text = (Path(__file__).parents[1] / "docs/operations.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|", text, re.MULTILINE))
    assert listed == served


@pytest.mark.parametrize("started", [1, 2], indirect=True, ids=["alone", "two workers"])
async def test_metrics_cover_all_processes(started: Processes) -> None:
    service = psutil.Process(started.services["booking"].pid)
    processes = service.children() or [service]
    await until(lambda: sample("process_open_fds") in scrape(started, "booking"))
    shown = await asyncio.to_thread(scrape, started, "booking")
    resident = sum(process.memory_info().rss for process in service.children() or [service])
    assert 0.5 < shown[sample("process_resident_memory_bytes")] / resident < 2
    assert shown[sample("process_cpu_seconds_total")] > 0.01 * len(processes)
    assert abs(shown[sample("process_start_time_seconds")] - service.create_time()) < 30
    assert shown[sample("process_max_fds")] == service.rlimit(psutil.RLIMIT_NOFILE)[0]


async def test_streams_are_counted_by_how_they_end(started: Processes) -> None:
    labels = {
        "grpc_type": "server_stream",
        "grpc_service": "parlor.booking.v1.BookingService",
        "grpc_method": "WatchBookings",
    }
    watchers = sample("parlor_changes_watchers")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{started.services['booking'].port}") as channel:
        stub = booking_pb2_grpc.BookingServiceStub(channel)
        async with watching(stub):
            assert (await asyncio.to_thread(scrape, started, "booking"))[watchers] == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.WatchBookings(booking_pb2.WatchBookingsRequest(page_token="?")).read()  # noqa: S106
        for code in ("Canceled", "InvalidArgument"):
            handled = sample("grpc_server_handled_total", **labels, grpc_code=code)
            await until(lambda: scrape(started, "booking").get(handled) == 1)  # noqa: B023 - it is awaited here
    assert (await asyncio.to_thread(scrape, started, "booking"))[watchers] == 0
